-- ARGV: life of a tombstone, then id and fence of every run. A run that the queue does not know gets a tombstone too, so that a late
-- copy of it does not come to life.
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local state, fence, scope, log, flight, outcome = read(id, 'state', 'fence', 'scope', 'log', 'flight', 'outcome')
  if not state or (fence == ARGV[i + 1] and (state == 'leased' or state == 'ended')) then
    if scope then free_slot(id, scope) end
    redis.call('ZREM', key('lease'), id)
    -- The log of a run whose ending could not be stashed has no end of its own; whoever follows finds the ending in the ledger.
    if log then redis.call('PEXPIRE', key('events', id), LOG_TTL) end
    redis.call('DEL', key('run', id), key('job', id), key('end', id))
    redis.call('HSET', key('run', id), 'state', 'done', 'fence', ARGV[i + 1])
    redis.call('PEXPIRE', key('run', id), ARGV[1])
    if flight then land(id, flight, outcome) end
  end
end
return 1
