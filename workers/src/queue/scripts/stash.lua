-- ARGV: lease, life of a tombstone, bytes of text that a log keeps, then of every ending: id, fence, tokens used (or empty), state of the ended run, ending,
-- the place of the first delta that comes before it, how many deltas, deltas. Answers for each: 'done', 'elsewhere' or 'unknown'.
local lease, life, most = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local ends = {}

local function stash(id, of, used, outcome, ending, text)
  local state, fence, scope, work, lane, reply_to, log, followers, held, flight, kept =
    read(id, 'state', 'fence', 'scope', 'work', 'lane', 'reply_to', 'log', 'followers', 'held', 'flight', 'kept')
  if not state then
    if is_buried(id) then return 'elsewhere' end
    -- The queue lost its memory. The ending goes to the ledger, and until it is there nobody should restore the run.
    bury(id, life)
    return 'unknown'
  end
  if (state == 'ready' or state == 'delayed') and (tonumber(fence) or 0) < tonumber(of) then
    -- It did lose its memory, and the run was restored. Nobody has taken it since, so this is its ending.
    end_wait(id, lane)
    redis.call('ZADD', key('lease'), now + lease, id)
    state, fence = 'leased', of
    redis.call('HSET', key('run', id), 'fence', fence)
  end
  if fence ~= of then return 'elsewhere' end
  -- The same step again, because its answer was lost.
  if state == 'ended' then return 'done' end
  if state ~= 'leased' then return 'elsewhere' end

  ends[#ends + 1] = key('end', id)
  ends[#ends + 1] = ending
  -- Those that wait behind it want to know when it is finished.
  if flight then
    redis.call('HSET', key('run', id), 'state', 'ended', 'outcome', outcome)
  else
    redis.call('HSET', key('run', id), 'state', 'ended')
  end
  if work == 'call' and used and has(held, 't') then settle(scope, id, fence, used) end
  free_slot(id, scope, held)
  announce(id, ending, reply_to, log, followers, text, kept, most)
  return 'done'
end

local answers, at = {}, 4
while at < #ARGV do
  local text, after = text_at(at + 5)
  answers[#answers + 1] = stash(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4], text)
  at = after
end
if #ends > 0 then redis.call('MSET', unpack(ends)) end
tell_all()
return answers
