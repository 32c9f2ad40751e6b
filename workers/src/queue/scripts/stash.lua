-- ARGV: lease, bytes of text that a log keeps, then of every ending: id, fence, tokens used (or empty), state of the ended run, ending,
-- the place of the first delta that comes before it, how many deltas, deltas. Answers for each: 'done', 'elsewhere' or 'unknown'.
local lease, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local unknown, ended = {}, 0

-- The same for a short record, which says that nothing but this is to be done.
local function stash_short(id, record, ending, text)
  local log, reply_to = string.match(record, '^.(.)%d+ (%S*)')
  ended = ended + 1
  write_short(id, 'e' .. string.sub(record, 2))
  write(key('end', id), ending)
  if log == 'l' then
    end_log(id, reply_to, ending, text, nil, most)
  elseif reply_to ~= '' then
    reply(reply_to, ending)
  end
  return 'done'
end

local function stash(id, of, used, outcome, ending, text)
  local record = short(id, 'l', of)
  if record then return stash_short(id, record, ending, text) end
  local run = find(id)
  if not run then
    if is_buried(id) then return 'elsewhere' end
    -- The queue lost its memory. The ending goes to the ledger, and until it is there nobody should restore the run.
    unknown[#unknown + 1] = id
    return 'unknown'
  end
  if (run.state == 'ready' or run.state == 'delayed') and (tonumber(run.fence) or 0) < tonumber(of) then
    -- It did lose its memory, and the run was restored. Nobody has taken it since, so this is its ending.
    end_wait(id, run.lane)
    call('ZADD', key('lease'), now + lease, id)
    run.state, run.fence = 'leased', of
  end
  if run.fence ~= of then return 'elsewhere' end
  -- The same step again, because its answer was lost.
  if run.state == 'ended' then return 'done' end
  if run.state ~= 'leased' then return 'elsewhere' end

  run.state, ended = 'ended', ended + 1
  write(key('end', id), ending)
  -- Those that wait behind it want to know when it is finished.
  if run.flight then run.outcome = outcome end
  changed[id] = true
  if run.work == 'call' and used ~= '' and has(run.held, 't') then settle(run.scope, id, run.fence, tonumber(used)) end
  free_slot(id, run)
  announce(id, run, ending, text, most)
  return 'done'
end

-- Where each ending begins.
local places, ids, at = {}, {}, 3
while at < #ARGV do
  places[#places + 1], ids[#ids + 1] = at, ARGV[at]
  at = at + 7 + tonumber(ARGV[at + 6])
end
find_all(ids)
local answers = {}
for i, at in ipairs(places) do
  answers[i] = stash(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], (text_at(at + 5)))
end
bury(unknown)
give_room_back(ended)
commit()
return answers
