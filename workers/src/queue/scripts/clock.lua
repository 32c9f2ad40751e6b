-- The time of a step: seconds, and microseconds in the second.
local clock = redis.call('TIME')
