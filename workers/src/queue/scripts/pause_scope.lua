-- ARGV: scope, for how long. A shorter pause does not end a longer one.
local paused, after = key('paused', ARGV[1]), tonumber(ARGV[2])
local before = tonumber(call('GET', paused)) or 0
if after > 0 and now + after > before then
  call('SET', paused, whole(now + after), 'PX', whole(after))
  close_room(ARGV[1])
  withdraw_all(ARGV[1])
  commit()
end
return 1
