-- ARGV: id, front door, after, events at most. Answers the length of the log (0: there is none), its first event, then the events after the asked
-- one.
local id, front_door, after, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local state, log, followers, work, attempts = read(id, 'state', 'log', 'followers', 'work', 'attempts')
local events = key('events', id)
if state then
  if state ~= 'ended' then follow(id, followers, front_door) end
  if not log then
    redis.call('HSET', key('run', id), 'log', '1')
    redis.call('DEL', events)
    redis.call('RPUSH', events, 'q' .. whole(now_us))
    if (state == 'leased' or state == 'ended') and work == 'call' then redis.call('RPUSH', events, 's' .. attempts) end
    if state == 'ended' then
      redis.call('RPUSH', events, 'e' .. (redis.call('GET', key('end', id)) or ''))
      redis.call('PEXPIRE', events, LOG_TTL)
    end
  end
end
local found = redis.call('LRANGE', events, after, after + most - 1)
table.insert(found, 1, redis.call('LINDEX', events, 0) or '')
table.insert(found, 1, whole(redis.call('LLEN', events)))
return found
