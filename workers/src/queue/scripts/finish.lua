-- ARGV: life of a tombstone, then id and fence of every run. A run that the queue does not know gets a tombstone too, so that a late
-- copy of it does not come to life.
local ended, parts, landings = {}, {}, {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local state, fence, scope, log, held, flight, outcome = read(id, 'state', 'fence', 'scope', 'log', 'held', 'flight', 'outcome')
  if not state or (fence == ARGV[i + 1] and (state == 'leased' or state == 'ended')) then
    if state == 'leased' then
      -- The slot of a stashed ending is free already, and its log has the time to live of one that has ended. The log of a run whose ending could not be
      -- stashed has no end of its own; whoever follows finds the ending in the ledger.
      free_slot(id, scope, held)
      if log then redis.call('PEXPIRE', key('events', id), LOG_TTL) end
    end
    ended[#ended + 1] = id
    parts[#parts + 1] = key('run', id)
    parts[#parts + 1] = key('job', id)
    parts[#parts + 1] = key('end', id)
    bury(id, ARGV[1])
    if flight then landings[#landings + 1] = { id, flight, outcome } end
  end
end
if #ended == 0 then return 1 end
redis.call('ZREM', key('lease'), unpack(ended))
redis.call('DEL', unpack(parts))
for _, landing in ipairs(landings) do
  land(unpack(landing))
end
return 1
