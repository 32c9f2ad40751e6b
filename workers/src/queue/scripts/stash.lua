-- ARGV: id, fence, tokens used (or empty), lease, life of a tombstone, state of the ended run, ending. Answers 'done', 'elsewhere' or 'unknown'.
local id, used, ending = ARGV[1], tonumber(ARGV[3]), ARGV[7]
local state, fence, scope, work, lane, reply_to, log, followers, held, flight =
  read(id, 'state', 'fence', 'scope', 'work', 'lane', 'reply_to', 'log', 'followers', 'held', 'flight')
if not state then
  -- The queue lost its memory. The ending goes to the ledger, and until it is there nobody should restore the run.
  redis.call('HSET', key('run', id), 'state', 'done', 'fence', ARGV[2])
  redis.call('PEXPIRE', key('run', id), ARGV[5])
  return 'unknown'
end
if (state == 'ready' or state == 'delayed') and (tonumber(fence) or 0) < tonumber(ARGV[2]) then
  -- It did lose its memory, and the run was restored. Nobody has taken it since, so this is its ending.
  end_wait(id, lane)
  redis.call('ZADD', key('lease'), now + tonumber(ARGV[4]), id)
  state, fence = 'leased', ARGV[2]
  redis.call('HSET', key('run', id), 'fence', fence)
end
if fence ~= ARGV[2] then return 'elsewhere' end
-- The same step again, because its answer was lost.
if state == 'ended' then return 'done' end
if state ~= 'leased' then return 'elsewhere' end

redis.call('SET', key('end', id), ending)
redis.call('HSET', key('run', id), 'state', 'ended')
-- Those that wait behind it want to know when it is finished.
if flight then redis.call('HSET', key('run', id), 'outcome', ARGV[6]) end
if work == 'call' and used and has(held, 't') then settle(scope, id, fence, used) end
free_slot(id, scope, held)
announce(id, ending, reply_to, log, followers)
return 'done'
