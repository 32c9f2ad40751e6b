-- ARGV: lease, bytes of text that a log keeps, then of every ending: id, fence, tokens used (or empty), state of the ended run, ending,
-- the place of the first delta that comes before it, how many deltas, deltas. Answers for each: 'done', 'elsewhere' or 'unknown'.
local lease, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local unknown = {}

local function stash(new)
  local id, run = new.id, find(new.id)
  if not run then
    if is_buried(id) then return 'elsewhere' end
    -- The queue lost its memory. The ending goes to the ledger, and until it is there nobody should restore the run.
    unknown[#unknown + 1] = id
    return 'unknown'
  end
  if (run.state == 'ready' or run.state == 'delayed') and (tonumber(run.fence) or 0) < tonumber(new.fence) then
    -- It did lose its memory, and the run was restored. Nobody has taken it since, so this is its ending.
    end_wait(id, run.lane)
    redis.call('ZADD', key('lease'), now + lease, id)
    run.state, run.fence = 'leased', new.fence
  end
  if run.fence ~= new.fence then return 'elsewhere' end
  -- The same step again, because its answer was lost.
  if run.state == 'ended' then return 'done' end
  if run.state ~= 'leased' then return 'elsewhere' end

  run.state, run.ending = 'ended', new.ending
  -- Those that wait behind it want to know when it is finished.
  if run.flight then run.outcome = new.outcome end
  changed[id] = true
  if run.work == 'call' and new.used and has(run.held, 't') then settle(run.scope, id, run.fence, new.used) end
  free_slot(id, run)
  announce(id, run, new.text, most)
  return 'done'
end

local endings, ids, at = {}, {}, 3
while at < #ARGV do
  local text, after = text_at(at + 5)
  endings[#endings + 1] = {
    id = ARGV[at], fence = ARGV[at + 1], used = tonumber(ARGV[at + 2]), outcome = ARGV[at + 3], ending = ARGV[at + 4], text = text,
  }
  ids[#ids + 1] = ARGV[at]
  at = after
end
find_all(ids)
local answers = {}
for i, ending in ipairs(endings) do answers[i] = stash(ending) end
bury(unknown)
commit()
return answers
