-- How runs come into the queue: by enqueue and by restore.

-- The arguments of one run from ARGV[at] on: id, account, lane, scope of the first target, scopes of all targets as JSON (empty
-- when there is one), deadline, tokens, attempts so far, how many of them were limited, the last fence (0: none), the digest of
-- its flight (or empty), '1' when its events are logged from the start, reply address (or empty), job.
local PUT_ARGS = 14

-- What the runs that come together have in common is written once, by `arrive`.
local came = { runs = {}, jobs = {}, waiting = 0, bytes = 0, deadlines = {}, lanes = {}, lines = {}, wakes = {}, leases = {}, offers = {} }

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
  local id, account, lane, scope = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local scopes, deadline, tokens, attempts, limited, fence = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8], ARGV[at + 9]
  local flight, log, reply_to, job = ARGV[at + 10], ARGV[at + 11], ARGV[at + 12], ARGV[at + 13]
  local fields = {
    'state', lease and 'leased' or 'ready', 'ready', NOW, 'account', account, 'lane', lane, 'scope', scope, 'deadline', deadline, 'tokens', tokens,
  }
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if scopes ~= '' then set('scopes', scopes) end
  if attempts ~= '0' then set('attempts', attempts) end
  if limited ~= '0' then set('limited', limited) end
  if reply_to ~= '' then set('reply_to', reply_to) end
  if flight ~= '' then set('flight', flight) end
  if log ~= '' then
    set('log', '1')
    if reply_to ~= '' then set('followers', reply_to) end
    if lease then
      begin_log(id, 'q' .. began, 's1')
      tell_of(id, reply_to, 2, 's1')
    else
      begin_log(id, 'q' .. began)
    end
  end
  if lease then
    fence = next_fence(fence)
    set('work', 'call')
    set('attempts', '1')
    set('taken', NOW)
    set('started', NOW)
    set('held', 'o')
  end
  if fence ~= '0' then set('fence', fence) end
  redis.call('HSET', key('run', id), unpack(fields))
  came.runs[id] = true
  add(came.jobs, key('job', id), job)

  if lease then
    add(came.leases, now + lease, id)
    -- The next event of its log is the third one.
    add(among(came.offers, scope), offer(id, fence, log ~= '' and '3' or '', job))
    return
  end
  came.waiting = came.waiting + 1
  came.bytes = came.bytes + #job
  add(came.deadlines, deadline, id)
  if flight ~= '' and wait_behind(id, lane, flight, tonumber(deadline)) then return end
  add(among(came.lanes, lane), NOW, id)
  local line = among(came.lines, key('ready', lane, scope, account))
  line.lane, line.scope, line.account = lane, scope, account
  line[#line + 1] = id
  shut_room(scope)
  came.wakes[scope] = (came.wakes[scope] or 0) + 1
end

local function arrive()
  if #came.jobs > 0 then redis.call('MSET', unpack(came.jobs)) end
  if #came.leases > 0 then
    redis.call('ZADD', key('lease'), unpack(came.leases))
    write_rooms()
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
  tell_all()
end
