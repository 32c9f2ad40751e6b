-- ARGV: id, front door, after, events at most. Answers the length of the log (0: there is none), its first event, then the events after the asked
-- one.
local id, front_door, after, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local run, events = find(id), key('events', ARGV[1])
if run then
  if run.state ~= 'ended' then follow(id, run, front_door) end
  if not run.log then
    run.log = '1'
    changed[id] = true
    call('DEL', events)
    call('RPUSH', events, 'q' .. NOW_US)
    if (run.state == 'leased' or run.state == 'ended') and run.work == 'call' then call('RPUSH', events, 's' .. run.attempts) end
    if run.state == 'ended' then
      call('RPUSH', events, 'e' .. (call('GET', key('end', id)) or ''))
      call('PEXPIRE', events, LOG_TTL)
    end
  end
  commit()
end
local found = call('LRANGE', events, after, after + most - 1)
table.insert(found, 1, call('LINDEX', events, 0) or '')
table.insert(found, 1, whole(call('LLEN', events)))
return found
