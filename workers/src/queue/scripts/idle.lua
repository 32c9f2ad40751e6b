-- ARGV: worker. For a worker that waits before it ever claimed: registers it, and answers 1 when some run is ready already.
local idle = key('idle', WILDCARD)
call('ZADD', idle, now + WAKE_TTL, ARGV[1])
call('PEXPIRE', idle, WAKE_TTL)
for _, lane in ipairs(LANES) do
  if call('ZCARD', key('waiting', lane)) > 0 then return 1 end
end
return 0
