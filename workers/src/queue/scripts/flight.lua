-- Flights: runs that would be the same call, and share one. `flight:<digest>` is the run that leads, `behind:<digest>` the list of those that
-- wait behind it; an entry counts while its run is delayed and has the field `behind`.

-- The smaller, the more urgent.
local RANK = { interactive = 1, default = 2, batch = 3 }
-- After so long a run that waits behind another one looks whether that one is still there.
local LOOK_AGAIN = 15000
-- Both keys live for so long after the deadline of who wrote them last, should nobody clear them away.
local FLIGHT_TTL = 86400000
-- So many runs are told by one step; the next one leads the others, and they are told when it is finished.
local TOLD_AT_ONCE = 500

local function ttl_until(deadline)
  return whole(math.max(deadline - now, 0) + FLIGHT_TTL)
end

local function lead(id, flight, deadline)
  redis.call('SET', key('flight', flight), id, 'PX', ttl_until(deadline))
end

-- Whether a run that comes into the queue waits behind another one. Otherwise it leads.
local function wait_behind(id, lane, flight, deadline)
  local leader = redis.call('GET', key('flight', flight))
  if leader then
    local state, of_leader, attempts = read(leader, 'state', 'lane', 'attempts')
    local called = (tonumber(attempts) or 0) > 0 or (state ~= 'ready' and state ~= 'delayed')
    if state and (called or RANK[of_leader] <= RANK[lane]) then
      local line = key('behind', flight)
      redis.call('HSET', key('run', id), 'state', 'delayed', 'ready', whole(now), 'behind', '1')
      redis.call('ZADD', key('delay'), now + LOOK_AGAIN, id)
      redis.call('RPUSH', line, id)
      redis.call('PEXPIRE', line, ttl_until(deadline))
      return true
    end
  end
  lead(id, flight, deadline)
  return false
end

-- Whether a run whose delay is over is delayed again, because its leader is still there. Otherwise it leads.
local function stays_behind(id, flight)
  local leader = redis.call('GET', key('flight', flight))
  local state = leader and read(leader, 'state')
  if state then
    redis.call('ZADD', key('delay'), now + LOOK_AGAIN, id)
    return true
  end
  redis.call('HDEL', key('run', id), 'behind')
  lead(id, flight, tonumber((read(id, 'deadline'))))
  return false
end

-- A leader has been finished, with this outcome; those behind it go on.
local function land(id, flight, outcome)
  if redis.call('GET', key('flight', flight)) ~= id then return end
  redis.call('DEL', key('flight', flight))
  local told = (outcome == 'succeeded' or outcome == 'failed') and TOLD_AT_ONCE or 0
  while true do
    local follower = redis.call('LPOP', key('behind', flight))
    if not follower then return end
    local state, behind, fence, lane, scope, account, deadline = read(follower, 'state', 'behind', 'fence', 'lane', 'scope', 'account', 'deadline')
    if state == 'delayed' and behind then
      redis.call('HDEL', key('run', follower), 'behind')
      if told > 0 and outcome == 'succeeded' then
        end_wait(follower, lane)
        take(follower, fence, '', 'answer', 0)
      else
        redis.call('ZREM', key('delay'), follower)
        make_ready(follower, lane, scope, account, now, false)
        wake(scope)
      end
      if told == 0 then return lead(follower, flight, tonumber(deadline)) end
      told = told - 1
    end
  end
end
