-- The record of a run, `run:<id>`, is a table of texts, packed. A step reads it once, and what it changes is written by `commit`, together: every
-- step that changes a record ends with that. What a step needs of many runs it reads at once (`find_all`).
--
-- A run that was offered and of which nothing more is to be said has a short record, which is written and read in a fraction of the time, because most runs that are waited
-- for have no other one in their life: `<state><log><fence> <reply to> <ready> <deadline> <lane> <account> <tokens> <scope>`. The state is 'l' (leased) or 'e' (ended); 'l' or '-'
-- says whether there is a log, which is followed by whoever waits for the reply.
local SHORT = '^([le])([l-])(%d+) (%S*) (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$'

-- False when there is none. What cannot be read is as good as gone: `missing` says so, and the reconciler restores the run.
local function unpacked(record)
  if not record then return false end
  local state, log, fence, reply_to, ready, deadline, lane, account, tokens, scope = string.match(record, SHORT)
  if state then
    reply_to = reply_to ~= '' and reply_to or nil
    return {
      state = state == 'l' and 'leased' or 'ended', fence = fence, reply_to = reply_to, ready = ready, deadline = deadline, lane = lane,
      account = account, tokens = tokens, scope = scope, log = log == 'l' and '1' or nil, followers = log == 'l' and reply_to or nil,
      work = 'call', attempts = '1', taken = ready, started = ready, held = 'o',
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

local function find_all(ids)
  if #ids == 0 then return end
  local names = {}
  for i, id in ipairs(ids) do names[i] = key('run', id) end
  for i, record in ipairs(call('MGET', unpack(names))) do records[ids[i]] = record end
end

-- What is written in the end of a step, in one command.
local function write(name, value)
  local at = #writes
  writes[at + 1] = name
  writes[at + 2] = value
end

-- The short record of a run that `find_all` has read, if it has one in this state and under this fence.
local function short(id, state, fence)
  local record = records[id]
  if type(record) == 'string' and string.sub(record, 1, 1) == state and string.sub(record, 3, #fence + 3) == fence .. ' ' then return record end
end

local function write_short(id, record)
  records[id] = record
  write(key('run', id), record)
end

-- The end of a step: writes the records that it changed, and tells each front door what there is to tell, in one message and in this order. Whoever
-- does not hear it finds the same in the ledger and in the log (`replies.rs`), so that nothing of it is kept here.
local function commit()
  for id in pairs(changed) do write(key('run', id), cmsgpack.pack(records[id])) end
  if #writes > 0 then call('MSET', unpack(writes)) end
  for front_door, parts in pairs(news) do call('PUBLISH', key('reply', front_door), cmsgpack.pack(parts)) end
end
