-- The time of a step: seconds, and microseconds in the second, as texts.
local function read_clock()
  call = redis.call
  return call('TIME')
end
