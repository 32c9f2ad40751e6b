-- ARGV: '1' to pause, '0' to go on. Idle workers are woken when the queue goes on.
local scopes = redis.call('SMEMBERS', key('scopes'))
if ARGV[1] == '1' then
  redis.call('SET', key('paused'), 1)
  redis.call('HDEL', key('meta'), 'open')
  for _, scope in ipairs(scopes) do withdraw_all(scope) end
  commit()
  return 1
end
if redis.call('DEL', key('paused')) == 1 then
  scopes[#scopes + 1] = WILDCARD
  for _, scope in ipairs(scopes) do
    for _ = 1, redis.call('ZCOUNT', key('idle', scope), now, '+inf') do wake(scope) end
  end
end
return 1
