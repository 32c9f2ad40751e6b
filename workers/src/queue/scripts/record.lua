-- The record of a run, `run:<id>`, is a table of texts, packed. A step reads it once, and what it changes is written by `commit`, together: every
-- step that changes a record ends with that. What a step needs of many runs it reads at once (`find_all`).
--
-- A run of which nothing is to be said but what most have in common has a short record, a line, which is written and read in a fraction of the time. Most runs have no other
-- one in their life.
--
--     r<log><fence> <head> <ready>                            waits in line, and was never called for
--     l<log><fence> <head> <ready>                            was offered as it came
--     c<log><fence> <head> <ready> <owner> <taken> <held>     was claimed, for its first call, or offered to who is known by now
--
-- An 'e' stands in front when the run has ended. The log is a '-' when there is none, otherwise an 'l', or a 'd' when text is in it that counts; it is followed by
-- whoever waits for the reply. The head is what the run came with (`put.lua`); what it held of limits is a '-' when that is nothing, and an 'o' of an offer.
local SHORT = '^(e?)([rlc])([ld-])(%d+) (%S+) (%d+) (%d+) (%l+) (%S+) (%S+) (%d+)(.*)$'
-- The same, to be recognised only: captures cost ten times as much.
local SHORT_FORM = '^e?[rlc][ld-]%d+ %S+ %d+ %d+ %l+ %S+ %S+ %d+'
local CLAIMED = '^ (%S+) (%d+) (%S+)$'
-- The first of these, and what a claim asks of it.
local WAITING = '^r[l-](%d+) %S+ (%d+) (%d+) %l+ %S+ ([^%s,]+)%S* (%d+)$'
-- The letters, and '-', as bytes.
local OFFERED, TAKEN, ENDED, LOGGED, NOTHING, OFFER = 108, 99, 101, 108, 45, 111

-- The scope of the target with this number, from 0. Those of all targets are written with commas between them.
local function scope_of(scopes, target)
  for scope in string.gmatch(scopes or '', '[^,]+') do
    if target == 0 then return scope end
    target = target - 1
  end
end

local function given(text, none)
  if text ~= none then return text end
end

-- False when there is none. What cannot be read is as good as gone: `missing` says so, and the reconciler restores the run.
local function unpacked(record)
  local ended, kind, log, fence, reply_to, deadline, tokens, lane, account, scopes, ready, more = string.match(record, SHORT)
  if not ended then
    local ok, run = pcall(cmsgpack.unpack, record)
    return ok and type(run) == 'table' and run
  end
  reply_to = given(reply_to, '-')
  local run = {
    state = ended == 'e' and 'ended' or 'leased', fence = given(fence, '0'), reply_to = reply_to, ready = ready, deadline = deadline, lane = lane,
    account = account, tokens = tokens, scope = scope_of(scopes, 0), scopes = scopes,
  }
  if log ~= '-' then run.log, run.followers = log == 'd' and 'd' or '1', reply_to end
  if kind == 'r' then
    run.state = 'ready'
  else
    run.work, run.attempts, run.taken, run.started, run.held = 'call', '1', ready, ready, 'o'
    if kind == 'c' then
      run.owner, run.taken, run.held = string.match(more, CLAIMED)
      run.started, run.held = run.taken, given(run.held, '-') or ''
    end
  end
  return run
end

-- The record of a run as far as it was read: a text that nobody has taken apart yet, or a table; false when the queue does not know the run.
local function record_of(id)
  if records[id] == nil then records[id] = unpack(call('MGET', key('run', id))) end
  return records[id]
end

-- The record of a run; false when the queue does not know it.
local function find(id)
  local run = record_of(id)
  if type(run) == 'string' then
    run = unpacked(run)
    records[id] = run
  end
  return run
end

-- Reads the records of runs, behind what is under other names; answers all that was read.
local function find_all(ids, names)
  names = names or {}
  local others = #names
  for i = 1, #ids do names[others + i] = PREFIX .. 'run:' .. ids[i] end
  if #names == 0 then return NONE end
  local values = call('MGET', unpack(names))
  for i = 1, #ids do records[ids[i]] = values[others + i] end
  return values
end

-- What is written in the end of a step.
local function write(name, value)
  writes[written + 1], writes[written + 2] = name, value
  written = written + 2
end

-- The short record of a run that `find_all` has read, if it is leased under this fence, or has ended.
local function short(id, has_ended, fence)
  local record = records[id]
  if type(record) ~= 'string' then return nil end
  local at = has_ended and 2 or 1
  if has_ended and string.byte(record) ~= ENDED then return nil end
  local kind = string.byte(record, at)
  if kind ~= OFFERED and kind ~= TAKEN then return nil end
  if string.find(record, fence .. ' ', at + 2, true) == at + 2 then return record end
end

-- The same, if it held nothing that its end gives back.
local function short_and_free(id, has_ended, fence)
  local record = short(id, has_ended, fence)
  if not record or string.byte(record, has_ended and 2 or 1) == OFFERED then return record end
  local held = string.byte(record, -1)
  if held == NOTHING or held == OFFER then return record end
end

-- Whoever waits for the reply to a run with this short record under this fence.
local function short_reply_to(record, fence)
  local at = #fence + 4
  if string.byte(record, at) ~= NOTHING then return string.sub(record, at, string.find(record, ' ', at, true) - 1) end
end

local function write_short(id, record)
  records[id] = record
  write(PREFIX .. 'run:' .. id, record)
end

-- Whether the queue knows a run.
local function is_known(id)
  local record = record_of(id)
  return type(record) == 'string' and string.find(record, SHORT_FORM) or find(id)
end

-- What a claim asks of a run that waits: of a short record no more than that, and the record.
local function find_waiting(id)
  local record = record_of(id)
  if type(record) ~= 'string' then return record end
  local fence, deadline, tokens, scope, ready = string.match(record, WAITING)
  if not fence then return find(id) end
  return { state = 'ready', scope = scope, fence = fence, deadline = deadline, tokens = tokens, ready = ready, short = record }
end

-- Makes the short record of a run that waits that of one which is called for.
local function claim_short(id, run, worker, held)
  local record, fence = run.short, next_fence(run.fence)
  local rest = string.sub(record, #run.fence + 3)
  if string.byte(record, 2) == LOGGED then run.log, run.followers = '1', given(string.match(rest, '%S+'), '-') end
  run.fence = fence
  write_short(id, 'c' .. (run.log and 'l' or '-') .. fence .. rest .. ' ' .. worker .. ' ' .. NOW .. ' ' .. (held == '' and '-' or held))
end

-- Makes the short record of a run that was offered that of one whose owner is known.
local function own_short(id, run, record)
  write(PREFIX .. 'run:' .. id, 'c' .. string.sub(record, 2) .. ' ' .. run.owner .. ' ' .. run.taken .. ' o')
end

-- Names and values in one command: an even number.
local WRITTEN_AT_ONCE = 1000

-- The end of a step: writes the records that it changed, and tells each front door what there is to tell, in one message and in this order. Whoever
-- does not hear it finds the same in the ledger and in the log (`replies.rs`), so that nothing of it is kept here.
local function commit()
  for id in pairs(changed) do
    write(key('run', id), cmsgpack.pack(records[id]))
    changed[id] = nil
  end
  -- Lua's stack is bounded.
  for at = 1, written, WRITTEN_AT_ONCE do
    call('MSET', unpack(writes, at, math.min(at + WRITTEN_AT_ONCE - 1, written)))
  end
  for i = 1, written do writes[i] = nil end
  written = 0
  for front_door, parts in pairs(news) do
    -- An ending alone goes as it is.
    local message = #parts == 2 and parts[1] == 'ending' and parts[2] or cmsgpack.pack(parts)
    call('PUBLISH', key('reply', front_door), message)
    news[front_door] = nil
  end
end
