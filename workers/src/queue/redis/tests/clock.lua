-- Stands for `clock.lua` in the tests of this crate. A pool with a key `clock` has the time that this key says, in microseconds, and nothing in
-- it ends by itself: times to live are noted in `expiries`, and whoever moves the clock deletes what has lived its time.
local clock = redis.call('TIME')
local set_to = tonumber(redis.call('GET', KEYS[1] .. ':clock'))
if set_to then clock = { math.floor(set_to / 1000000), set_to % 1000000 } end

local real, expiries = redis, KEYS[1] .. ':expiries'
local redis = not set_to and real or {
  call = function(command, first, ...)
    local rest = { ... }
    if command == 'PEXPIRE' or (command == 'SET' and rest[2] == 'PX') then
      local after = command == 'SET' and rest[3] or rest[1]
      if rest[4] == 'NX' and real.call('EXISTS', first) == 1 then return false end
      if command == 'SET' then real.call('SET', first, rest[1]) end
      local expiry = string.format('%.0f', math.floor(set_to / 1000) + after)
      if rest[2] == 'NX' then return real.call('ZADD', expiries, 'NX', expiry, first) end
      return real.call('ZADD', expiries, expiry, first)
    end
    if command == 'DEL' or command == 'UNLINK' then real.call('ZREM', expiries, first, ...) end
    local answer = real.call(command, first, ...)
    -- A list that was emptied is gone.
    if command == 'LPOP' and real.call('EXISTS', first) == 0 then real.call('ZREM', expiries, first) end
    return answer
  end,
}
