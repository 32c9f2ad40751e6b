-- The record of a run, `run:<id>`, is a table of texts, packed. A step reads it once, and what it changes is written by `commit`, together: every
-- step that changes a record ends with that. What a step needs of many runs it reads at once (`find_all`).
--
-- A run that was offered and of which nothing more is to be said has a short record, which is written and read in a fraction of the time, because most runs that are waited
-- for have no other one in their life: `l<log><fence> <head> <ready>`, with an 'e' in front when the run has ended. An 'l' or a '-' says whether there is a log, which
-- is followed by whoever waits for the reply. The head is what the run came with (`put.lua`).
local SHORT = '^(e?)l([l-])(%d+) (%S+) (%d+) (%S+) (%l+) (%S+) (%d+) (%d+)$'

-- The scopes of a run's targets are written with commas between them; that of the first target is the one where it begins.
local FIRST_SCOPE = '^[^,]*'

-- The scope of the target with this number, from 0.
local function scope_of(scopes, target)
  for scope in string.gmatch(scopes or '', '[^,]+') do
    if target == 0 then return scope end
    target = target - 1
  end
end

-- False when there is none. What cannot be read is as good as gone: `missing` says so, and the reconciler restores the run.
local function unpacked(record)
  if not record then return false end
  local ended, log, fence, reply_to, deadline, scopes, lane, account, tokens, ready = string.match(record, SHORT)
  if ended then
    reply_to = reply_to ~= '-' and reply_to or nil
    return {
      state = ended == 'e' and 'ended' or 'leased', fence = fence, reply_to = reply_to, ready = ready, deadline = deadline, lane = lane,
      account = account, tokens = tokens, scope = string.match(scopes, FIRST_SCOPE), scopes = scopes, log = log == 'l' and '1' or nil,
      followers = log == 'l' and reply_to or nil, work = 'call', attempts = '1', taken = ready, started = ready, held = 'o',
    }
  end
  local ok, run = pcall(cmsgpack.unpack, record)
  return ok and type(run) == 'table' and run
end

-- The record of a run; false when the queue does not know it.
local function find(id)
  local run = records[id]
  if type(run) == 'table' or run == false then return run end
  run = unpacked(run or unpack(call('MGET', key('run', id))))
  records[id] = run
  return run
end

-- Reads the records of runs, behind what is under other names; answers all that was read, and the names.
local function find_all(ids, names)
  names = names or {}
  local others = #names
  for i = 1, #ids do names[others + i] = PREFIX .. 'run:' .. ids[i] end
  if #names == 0 then return NONE, names end
  local values = call('MGET', unpack(names))
  for i = 1, #ids do records[ids[i]] = values[others + i] end
  return values, names
end

-- What is written in the end of a step, in one command.
local writes, written = {}, 0

local function write(name, value)
  writes[written + 1], writes[written + 2] = name, value
  written = written + 2
end

-- The short record of a run that `find_all` has read, if it has one under this fence and is leased, or has ended.
local function short(id, is_ended, fence)
  local record = records[id]
  if type(record) ~= 'string' then return nil end
  local at = is_ended and 4 or 3
  if string.byte(record, at - 2) == 108 and (not is_ended or string.byte(record) == 101) and string.find(record, fence .. ' ', at, true) == at then
    return record
  end
end

local function write_short(id, name, record)
  records[id] = record
  write(name, record)
end

-- The end of a step: writes the records that it changed, and tells each front door what there is to tell, in one message and in this order. Whoever
-- does not hear it finds the same in the ledger and in the log (`replies.rs`), so that nothing of it is kept here.
local function commit()
  for id in pairs(changed) do
    write(key('run', id), cmsgpack.pack(records[id]))
    changed[id] = nil
  end
  if written > 0 then
    call('MSET', unpack(writes, 1, written))
    for i = 1, written do writes[i] = nil end
    written = 0
  end
  for front_door, parts in pairs(news) do
    -- An ending alone goes as it is.
    local message = #parts == 2 and parts[1] == 'ending' and parts[2] or cmsgpack.pack(parts)
    call('PUBLISH', key('reply', front_door), message)
    news[front_door] = nil
  end
end
