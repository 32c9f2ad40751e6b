-- ARGV: worker, how many runs at most, lease, losses allowed. Answers {claims…}. What does not fit is left for the next time.
local worker, limit, lease, allowed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local claims, bytes = {}, 0

for scope in pairs(promote()) do wake(scope) end

local function ending_work(cancel)
  return cancel == 'cancelled' and 'cancel' or 'expire'
end

-- Takes a run over. The fields of a lost call are kept until the run is released, so that they survive the loss of a reaper too.
local function take_over(id, fence, work, job, ending)
  local new_fence = take(id, fence, worker, work, lease)
  if work == 'record' then redis.call('HSET', key('run', id), 'state', 'ended') end
  local attempts, limited, target, ready, waited, taken, started =
    read(id, 'attempts', 'limited', 'target', 'ready', 'waited', 'taken', 'started')
  local lost_worker, lost_fence, lost_attempt, lost_taken, log =
    read(id, 'lost_worker', 'lost_fence', 'lost_attempt', 'lost_taken', 'log')
  bytes = bytes + #job + #(ending or '')
  claims[#claims + 1] = {
    id, job, new_fence, whole((tonumber(attempts) or 0) + 1), limited or '0', target or '0',
    waited or whole(math.max((tonumber(taken) or now) - tonumber(ready), 0)), started or NOW, work, lost_worker or '', lost_fence or '', lost_attempt or '', lost_taken or '', ending or '', mark(id, log),
  }
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('lease'), '-inf', now, 'LIMIT', 0, limit)) do
  if bytes > ANSWER_BYTES then break end
  local state, fence, work, cancel, scope, held, owner = read(id, 'state', 'fence', 'work', 'cancel', 'scope', 'held', 'owner')
  local job = redis.call('GET', key('job', id))
  local ending = state == 'ended' and redis.call('GET', key('end', id))
  if state and state ~= 'leased' and state ~= 'ended' then
    redis.call('ZREM', key('lease'), id)
  elseif not state or not job or (state == 'ended' and not ending) then
    forget(id)
  elseif not withdraw_run(id, scope, held) then
    free_slot(id, scope, held)
    if ending then
      work = 'record'
    elseif work == 'call' then
      local attempts, taken = read(id, 'attempts', 'taken')
      local losses = redis.call('HINCRBY', key('run', id), 'losses', 1)
      redis.call('HSET', key('run', id), 'lost_worker', owner or '', 'lost_fence', fence, 'lost_attempt', attempts, 'lost_taken', taken)
      work = losses > allowed and 'poison' or 'lost'
    end
    if cancel and not ending then work = ending_work(cancel) end
    take_over(id, fence, work, job, ending)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', now, 'LIMIT', 0, math.max(limit - #claims, 0))) do
  if bytes > ANSWER_BYTES then break end
  local state, fence, cancel, lane = read(id, 'state', 'fence', 'cancel', 'lane')
  local job = redis.call('GET', key('job', id))
  if state ~= 'ready' and state ~= 'delayed' then
    redis.call('ZREM', key('deadlines'), id)
  elseif not job then
    forget(id)
  else
    end_wait(id, lane)
    take_over(id, fence, ending_work(cancel), job)
  end
end
return claims
