-- ARGV: lease, life of a tombstone, then of every ending: id, fence, tokens used (or empty), state of the ended run, ending. Answers for each: 'done',
-- 'elsewhere' or 'unknown'.
local lease, life = tonumber(ARGV[1]), ARGV[2]
local replies = {}

local function stash(id, of, used, outcome, ending)
  local state, fence, scope, work, lane, reply_to, log, followers, held, flight =
    read(id, 'state', 'fence', 'scope', 'work', 'lane', 'reply_to', 'log', 'followers', 'held', 'flight')
  if not state then
    -- The queue lost its memory. The ending goes to the ledger, and until it is there nobody should restore the run.
    redis.call('HSET', key('run', id), 'state', 'done', 'fence', of)
    redis.call('PEXPIRE', key('run', id), life)
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

  redis.call('SET', key('end', id), ending)
  redis.call('HSET', key('run', id), 'state', 'ended')
  -- Those that wait behind it want to know when it is finished.
  if flight then redis.call('HSET', key('run', id), 'outcome', outcome) end
  if work == 'call' and used and has(held, 't') then settle(scope, id, fence, used) end
  free_slot(id, scope, held)
  announce(id, ending, reply_to, log, followers, replies)
  return 'done'
end

local answers = {}
for i = 3, #ARGV, 5 do
  answers[#answers + 1] = stash(ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4])
end
for front_door, endings in pairs(replies) do send(front_door, unpack(endings)) end
return answers
