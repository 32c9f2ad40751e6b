-- ARGV: id and fence of every run. A run that the queue does not know gets a tombstone too, so that a late copy of it does not come to life.
local ids = {}
for i = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
find_all(ids)

local over, parts, landings = {}, {}, {}
for i, id in ipairs(ids) do
  local run = find(id)
  if not run or (run.fence == ARGV[2 * i] and (run.state == 'leased' or run.state == 'ended')) then
    if run and run.state == 'leased' then
      -- The slot of a stashed ending is free already, and its log has the time to live of one that has ended. The log of a run whose ending could not be
      -- stashed has no end of its own; whoever follows finds the ending in the ledger.
      free_slot(id, run)
      if run.log then redis.call('PEXPIRE', key('events', id), LOG_TTL) end
    end
    over[#over + 1] = id
    parts[#parts + 1] = key('run', id)
    parts[#parts + 1] = key('job', id)
    if run and run.flight then landings[#landings + 1] = { id, run.flight, run.outcome } end
    records[id] = false
  end
end
if #over == 0 then return 1 end
bury(over)
redis.call('ZREM', key('lease'), unpack(over))
redis.call('DEL', unpack(parts))
for _, landing in ipairs(landings) do
  land(unpack(landing))
end
commit()
return 1
