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
  call('SET', key('flight', flight), id, 'PX', ttl_until(deadline))
end

-- Whether a run that comes into the queue waits behind another one. Otherwise it leads.
local function wait_behind(id, run)
  local flight, deadline = run.flight, tonumber(run.deadline)
  local of = call('GET', key('flight', flight))
  local leader = of and find(of)
  if leader then
    local called = (tonumber(leader.attempts) or 0) > 0 or (leader.state ~= 'ready' and leader.state ~= 'delayed')
    if called or RANK[leader.lane] <= RANK[run.lane] then
      local line = key('behind', flight)
      run.state, run.ready, run.behind = 'delayed', NOW, '1'
      call('ZADD', key('delay'), now + LOOK_AGAIN, id)
      call('RPUSH', line, id)
      call('PEXPIRE', line, ttl_until(deadline))
      return true
    end
  end
  lead(id, flight, deadline)
  return false
end

-- Whether a run whose delay is over is delayed again, because its leader is still there. Otherwise it leads.
local function stays_behind(id, run)
  local leader = call('GET', key('flight', run.flight))
  if leader and find(leader) then
    call('ZADD', key('delay'), now + LOOK_AGAIN, id)
    return true
  end
  run.behind = nil
  changed[id] = true
  lead(id, run.flight, tonumber(run.deadline))
  return false
end

-- A leader has been finished, with this outcome; those behind it go on.
local function land(id, flight, outcome)
  if call('GET', key('flight', flight)) ~= id then return end
  call('DEL', key('flight', flight))
  local told = (outcome == 'succeeded' or outcome == 'failed') and TOLD_AT_ONCE or 0
  while true do
    local follower = call('LPOP', key('behind', flight))
    if not follower then return end
    local run = find(follower)
    if run and run.state == 'delayed' and run.behind then
      run.behind = nil
      if told > 0 and outcome == 'succeeded' then
        end_wait(follower, run.lane)
        take(follower, run, '', 'answer', 0)
      else
        call('ZREM', key('delay'), follower)
        make_ready(follower, run, now, false)
        wake(run.scope)
      end
      if told == 0 then return lead(follower, flight, tonumber(run.deadline)) end
      told = told - 1
    end
  end
end
