-- ARGV: what the clock shows, in milliseconds. Moves it, and ends what has lived its time: Redis keeps a key in its last millisecond.
redis.call('SET', KEYS[1] .. ':clock', ARGV[1] .. '000')
local expiries = KEYS[1] .. ':expiries'
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', '(' .. ARGV[1])) do
  redis.call('DEL', expired)
  redis.call('ZREM', expiries, expired)
end
return 1
