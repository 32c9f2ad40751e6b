-- ARGV: '1' to pause, '0' to go on. Idle workers are woken when the queue goes on.
local scopes = call('SMEMBERS', key('scopes'))
if ARGV[1] == '1' then
  call('SET', key('paused'), 1)
  call('DEL', key('room'))
  for _, scope in ipairs(scopes) do withdraw_all(scope) end
  commit()
  return 1
end
if call('DEL', key('paused')) == 1 then
  scopes[#scopes + 1] = WILDCARD
  for _, scope in ipairs(scopes) do
    for _ = 1, call('ZCOUNT', key('idle', scope), now, '+inf') do wake(scope) end
  end
end
return 1
