-- ARGV: id and fence of every run. A run that the queue does not know gets a tombstone too, so that a late copy of it does not come to life.
local ids = {}
for i = 1, #ARGV / 2 do ids[i] = ARGV[2 * i - 1] end
find_all(ids)

local over, parts, landings = {}, {}, {}

-- Whether the run is over with this. Those that wait behind it are told when all are.
local function finish(id, fence)
  if short_and_free(id, true, fence) then return true end
  local run = find(id)
  if not run then return true end
  if run.fence ~= fence or (run.state ~= 'leased' and run.state ~= 'ended') then return false end
  if run.state == 'leased' then
    -- The slot of a stashed ending is free already, and its log has the time to live of one that has ended. The log of a run whose ending could not be
    -- stashed has no end of its own; whoever follows finds the ending in the ledger.
    free_slot(id, run)
    if run.log then call('PEXPIRE', key('events', id), LOG_TTL) end
  end
  if run.flight then landings[#landings + 1] = { id, run.flight, run.outcome } end
  return true
end

for i, id in ipairs(ids) do
  if finish(id, ARGV[2 * i]) then
    records[id], over[#over + 1] = false, id
    local at = #parts
    parts[at + 1], parts[at + 2], parts[at + 3] = PREFIX .. 'run:' .. id, PREFIX .. 'job:' .. id, PREFIX .. 'end:' .. id
  end
end
if #over == 0 then return 1 end
bury(over)
call('ZREM', key('lease'), unpack(over))
call('DEL', unpack(parts))
for _, landing in ipairs(landings) do
  land(unpack(landing))
end
commit()
return 1
