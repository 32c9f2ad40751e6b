-- Requests a minute, exactly: a list with the moment of every request of the last minute, oldest first. A moment is cut to
-- the millisecond, so it leaves the minute only when it is *more* than 60,000 ms old.

local function charge(log)
  call('RPUSH', log, NOW)
  call('PEXPIRE', log, MINUTE + 1000)
end

-- Drops what has left the minute and counts the rest.
local function count(log)
  local newest = call('LINDEX', log, -1)
  if not newest then return 0 end
  if tonumber(newest) > now then
    -- The clock was set back, and nobody knows how old these are. They count as if they had come just now: for a minute, and not for longer.
    local counted = call('LLEN', log)
    call('DEL', log)
    for _ = 1, counted do charge(log) end
    return counted
  end
  if newest + MINUTE < now then
    call('DEL', log)
    return 0
  end
  while call('LINDEX', log, 0) + MINUTE < now do
    call('LPOP', log)
  end
  return call('LLEN', log)
end

-- When a log of `counted` requests has room for another one under `limit`.
local function opens(log, counted, limit)
  if limit <= 0 or counted < limit then return now + MINUTE end
  return call('LINDEX', log, counted - limit) + MINUTE + 1
end
