-- How runs come into the queue: by enqueue and by restore.

-- The arguments of one run from ARGV[at] on: id, account, lane, scope of the first target, scopes of all targets as JSON (empty
-- when there is one), deadline, tokens, attempts so far, how many of them were limited, the last fence (0: none), the digest of
-- its flight (or empty), '1' when its events are logged from the start, reply address (or empty), job.
local PUT_ARGS = 14

-- What the runs that come together have in common is written once, by `arrive`.
local came = { waiting = 0, bytes = 0, deadlines = {}, lanes = {}, lines = {}, wakes = {}, leases = {}, offers = {} }

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
  if redis.call('RPUSH', events, ...) > select('#', ...) then
    redis.call('DEL', events)
    redis.call('RPUSH', events, ...)
  end
end

-- `began` tells this log from an earlier one of the run, which was lost: empty for the log of its submission. With `lease`, the run is offered.
local function put(at, began, lease)
  local id, account, lane, scope, scopes, deadline, tokens, attempts, limited, fence, flight, log, reply_to, job = unpack(ARGV, at, at + PUT_ARGS - 1)
  local function given(text, none)
    if text ~= none then return text end
  end
  local run = {
    state = 'ready', ready = NOW, account = account, lane = lane, scope = scope, deadline = deadline, tokens = tokens,
    scopes = given(scopes, ''), reply_to = given(reply_to, ''), flight = given(flight, ''), log = given(log, ''),
    attempts = given(attempts, '0'), limited = given(limited, '0'), fence = given(fence, '0'),
  }
  if run.log then run.followers = run.reply_to end
  records[id], changed[id] = run, true
  write(key('job', id), job)

  if lease then
    run.state, run.fence, run.work, run.attempts, run.taken, run.started, run.held = 'leased', next_fence(fence), 'call', '1', NOW, NOW, 'o'
    add(came.leases, now + lease, id)
    local next_event = ''
    if run.log then
      begin_log(id, 'q' .. began, 's1')
      tell_of(id, run.followers, 2, 's1')
      next_event = '3'
    end
    add(among(came.offers, scope), offer(id, run.fence, next_event, job))
    return
  end

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
    redis.call('ZADD', key('lease'), unpack(came.leases))
    write_room()
  end
  for scope, offers in pairs(came.offers) do redis.call('RPUSH', key('offers', scope), unpack(offers)) end
  if came.waiting > 0 then
    redis.call('ZADD', key('deadlines'), unpack(came.deadlines))
    redis.call('HINCRBY', key('meta'), 'bytes', whole(came.bytes))
  end
  for lane, runs in pairs(came.lanes) do redis.call('ZADD', key('waiting', lane), unpack(runs)) end
  for name, line in pairs(came.lines) do
    -- An account that has a line has its turn.
    if redis.call('RPUSH', name, unpack(line)) == #line then take_turn(line.lane, line.scope, line.account) end
  end
  for scope, runs in pairs(came.wakes) do
    for _ = 1, runs do
      if not wake(scope) then break end
    end
  end
  commit()
end
