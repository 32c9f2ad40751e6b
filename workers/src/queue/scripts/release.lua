-- ARGV: id, fence, after, target (empty: as before), and what the claim was: 'call', 'limited' (a call that its provider put off) or
-- 'uncounted'. Answers 'done', 'elsewhere' or 'unknown'.
local id, after, target, uncounted = ARGV[1], tonumber(ARGV[3]), ARGV[4], ARGV[5] == 'uncounted'
local state, fence, work, lane, scope, account = read(id, 'state', 'fence', 'work', 'lane', 'scope', 'account')
if not state then return is_buried(id) and 'elsewhere' or 'unknown' end
if fence ~= ARGV[2] or state ~= 'leased' then return 'elsewhere' end

if uncounted and work ~= 'call' then
  -- No call was made: what was to be done is still to be done, and the reaper finds it again.
  redis.call('ZADD', key('lease'), now + after, id)
  return 'done'
end

local attempts, deadline, cancel = read(id, 'attempts', 'deadline', 'cancel')
local scopes, ready, tokens, log, followers, held = read(id, 'scopes', 'ready', 'tokens', 'log', 'followers', 'held')
local size = redis.call('STRLEN', key('job', id))
free_slot(id, scope, held)
redis.call('ZREM', key('lease'), id)
redis.call('HDEL', key('run', id), 'owner', 'work', 'taken', 'waited', 'held', 'lost_worker', 'lost_fence', 'lost_attempt', 'lost_taken', 'behind')

if ARGV[5] == 'limited' and work == 'call' then redis.call('HINCRBY', key('run', id), 'limited', 1) end
-- Whoever follows is told of the retry, and that the text which was streamed does not count. There is none when the run is to end.
if log and not cancel and work ~= 'answer' and (not uncounted or log == 'd') then
  note(id, followers, 'r')
  redis.call('HSET', key('run', id), 'log', '1')
end
local since = now
if uncounted then
  attempts = math.max((tonumber(attempts) or 1) - 1, 0)
  redis.call('HSET', key('run', id), 'attempts', attempts)
  if attempts == 0 then redis.call('HDEL', key('run', id), 'started') end
  since = tonumber(ready)
  -- The account gets its turn back. An offer took none.
  local own = not has(held, 'o') and tonumber(redis.call('ZSCORE', key('virtual', lane), account))
  if own then
    redis.call('ZADD', key('virtual', lane), own - math.max(tonumber(tokens), 1), account)
    redis.call('ZREM', key('turns', lane, scope), account)
  end
end
if target ~= '' then
  scope = scopes and cjson.decode(scopes)[tonumber(target) + 1] or scope
  redis.call('HSET', key('run', id), 'target', target, 'scope', scope)
end

-- A run that somebody wants to end is not made to wait: whoever comes first, a claim or the reaper, is told to end it.
begin_wait(id, cancel and now or deadline, size)
if after > 0 and not cancel then
  redis.call('HSET', key('run', id), 'state', 'delayed')
  redis.call('ZADD', key('delay'), now + after, id)
else
  make_ready(id, lane, scope, account, since, true)
end
wake(scope)
tell_all()
return 'done'
