-- How runs come into the queue: by enqueue and by restore.

-- The arguments of one run from ARGV[at] on: id, account, lane, scope of the first target, scopes of all targets as JSON (empty
-- when there is one), deadline, tokens, attempts so far, how many of them were limited, the last fence (0: none), the digest of
-- its flight (or empty), '1' when its events are logged from the start, reply address (or empty), job.
local PUT_ARGS = 14

-- What the runs that come together have in common is written once, by `arrive`.
local came

local function begin_put()
  came = { waiting = 0, bytes = 0, deadlines = {}, lanes = {}, lines = {}, wakes = {}, leases = {}, offers = {} }
  begin_offers()
end

local function among(groups, name)
  local group = groups[name]
  if not group then
    group = {}
    groups[name] = group
  end
  return group
end

local function add(group, one, other)
  group[#group + 1] = one
  group[#group + 1] = other
end

-- The log of a run begins anew: what an earlier one of it left is gone.
local function begin_log(id, ...)
  local events = key('events', id)
  if call('RPUSH', events, ...) > select('#', ...) then
    call('DEL', events)
    call('RPUSH', events, ...)
  end
end

local function given(text, none)
  if text ~= none then return text end
end

-- The record of a run as it comes; `fence` and what else is none is left out.
local function arrived(state, id, account, lane, scope, scopes, deadline, tokens, attempts, limited, fence, flight, log, reply_to)
  local run = {
    state = state, ready = NOW, account = account, lane = lane, scope = scope, deadline = deadline, tokens = tokens,
    scopes = given(scopes, ''), reply_to = given(reply_to, ''), flight = given(flight, ''), log = given(log, ''),
    attempts = given(attempts, '0'), limited = given(limited, '0'), fence = given(fence, '0'),
  }
  if run.log then run.followers = run.reply_to end
  records[id], changed[id] = run, true
  return run
end

-- A run that is leased as it comes.
local function put_offered(at, expiry)
  local id, account, lane, scope, scopes, deadline, tokens, _, _, fence, _, log, reply_to, job = unpack(ARGV, at, at + PUT_ARGS - 1)
  fence = next_fence(fence)
  if scopes == '' then
    local line = { log == '' and 'l-' .. fence or 'll' .. fence, reply_to, NOW, deadline, lane, account, tokens, scope }
    write_short(id, table.concat(line, ' '))
  else
    local run = arrived('leased', unpack(ARGV, at, at + PUT_ARGS - 2))
    run.fence, run.work, run.attempts, run.taken, run.started, run.held = fence, 'call', '1', NOW, NOW, 'o'
  end
  write(key('job', id), job)
  add(came.leases, expiry, id)
  local next_event = ''
  if log ~= '' then
    begin_log(id, 'q', 's1')
    tell_of(id, reply_to, 2, 's1')
    next_event = '3'
  end
  add(among(came.offers, scope), offer(id, fence, next_event), job)
end

-- `began` tells this log from an earlier one of the run, which was lost: empty for the log of its submission.
local function put(at, began)
  local run = arrived('ready', unpack(ARGV, at, at + PUT_ARGS - 2))
  local id, account, lane, scope, deadline, job = ARGV[at], run.account, run.lane, run.scope, run.deadline, ARGV[at + PUT_ARGS - 1]
  write(key('job', id), job)
  if run.log then begin_log(id, 'q' .. began) end
  came.waiting = came.waiting + 1
  came.bytes = came.bytes + #job
  add(came.deadlines, deadline, id)
  if run.flight and wait_behind(id, run) then return end
  add(among(came.lanes, lane), NOW, id)
  local line = among(came.lines, key('ready', lane, scope, account))
  line.lane, line.scope, line.account = lane, scope, account
  line[#line + 1] = id
  shut_room(scope)
  came.wakes[scope] = (came.wakes[scope] or 0) + 1
end

local function arrive()
  if #came.leases > 0 then
    call('ZADD', key('lease'), unpack(came.leases))
    write_room()
  end
  for scope, offers in pairs(came.offers) do call('RPUSH', key('offers', scope), unpack(offers)) end
  if came.waiting > 0 then
    call('ZADD', key('deadlines'), unpack(came.deadlines))
    call('HINCRBY', key('meta'), 'bytes', whole(came.bytes))
  end
  for lane, runs in pairs(came.lanes) do call('ZADD', key('waiting', lane), unpack(runs)) end
  for name, line in pairs(came.lines) do
    -- An account that has a line has its turn.
    if call('RPUSH', name, unpack(line)) == #line then take_turn(line.lane, line.scope, line.account) end
  end
  for scope, runs in pairs(came.wakes) do
    for _ = 1, runs do
      if not wake(scope) then break end
    end
  end
  commit()
end
