-- Stands for `clock.lua` in the tests of this crate. A pool with a key `clock` has the time that this key says, in microseconds, and nothing in
-- it ends by itself: times to live are noted in `expiries`, and whoever moves the clock deletes what has lived its time.
local set_to

local function note_expiries(command, first, ...)
  local rest, expiries = { ... }, KEYS[1] .. ':expiries'
  if command == 'PEXPIRE' or (command == 'SET' and rest[2] == 'PX') then
    local after = command == 'SET' and rest[3] or rest[1]
    if rest[4] == 'NX' and redis.call('EXISTS', first) == 1 then return false end
    if command == 'SET' then redis.call('SET', first, rest[1]) end
    local expiry = string.format('%.0f', math.floor(set_to / 1000) + after)
    if rest[2] == 'NX' then return redis.call('ZADD', expiries, 'NX', expiry, first) end
    return redis.call('ZADD', expiries, expiry, first)
  end
  if command == 'DEL' or command == 'UNLINK' then redis.call('ZREM', expiries, first, ...) end
  local answer = redis.call(command, first, ...)
  -- A list that was emptied is gone.
  if command == 'LPOP' and redis.call('EXISTS', first) == 0 then redis.call('ZREM', expiries, first) end
  return answer
end

local function read_clock()
  set_to = tonumber(redis.call('GET', KEYS[1] .. ':clock'))
  call = set_to and note_expiries or redis.call
  if set_to then return { string.format('%.0f', math.floor(set_to / 1000000)), string.format('%.0f', set_to % 1000000) } end
  return redis.call('TIME')
end
