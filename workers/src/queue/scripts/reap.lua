-- ARGV: worker, how many runs at most, lease, losses allowed. Answers {claims…}; of one whose work is to record an ending, that stands behind the job. What does not
-- fit is left for the next time.
local worker, limit, lease, allowed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local claims, taken, bytes = {}, 0, 0

for scope in pairs(promote()) do wake(scope) end

local function ending_work(cancel)
  return cancel == 'cancelled' and 'cancel' or 'expire'
end

-- Takes a run over. What is known of a lost call is kept until the run is released, so that it survives the loss of a reaper too.
local function take_over(id, run, work, job, ending)
  take(id, run, worker, work, lease)
  if work == 'record' then run.state = 'ended' end
  bytes, taken = bytes + #job + #(ending or ''), taken + 1
  local waited = run.waited or whole(math.max((tonumber(run.taken) or now) - tonumber(run.ready), 0))
  local head = head_of(id, run, work, whole((tonumber(run.attempts) or 0) + 1), waited)
  if run.lost_fence then
    head = head .. ' ' .. (run.lost_worker or '-') .. ' ' .. run.lost_fence .. ' ' .. (run.lost_attempt or '0') .. ' ' .. (run.lost_taken or '0')
  end
  add(claims, head, job)
  if ending then claims[#claims + 1] = ending end
end

for _, id in ipairs(call('ZRANGEBYSCORE', key('lease'), '-inf', now, 'LIMIT', 0, limit)) do
  if bytes > ANSWER_BYTES then break end
  local run, job = find(id), call('GET', key('job', id))
  local ending = run and run.state == 'ended' and call('GET', key('end', id))
  if run and run.state ~= 'leased' and run.state ~= 'ended' then
    call('ZREM', key('lease'), id)
  elseif not run or not job or (run.state == 'ended' and not ending) then
    forget(id)
  elseif not withdraw_run(id, run) then
    free_slot(id, run)
    local work = run.work
    if ending then
      work = 'record'
    elseif work == 'call' then
      local losses = (tonumber(run.losses) or 0) + 1
      run.losses = whole(losses)
      run.lost_worker, run.lost_fence, run.lost_attempt, run.lost_taken = run.owner, run.fence, run.attempts, run.taken
      work = losses > allowed and 'poison' or 'lost'
    end
    if run.cancel and not ending then work = ending_work(run.cancel) end
    take_over(id, run, work, job, ending)
  end
end

for _, id in ipairs(call('ZRANGEBYSCORE', key('deadlines'), '-inf', now, 'LIMIT', 0, math.max(limit - taken, 0))) do
  if bytes > ANSWER_BYTES then break end
  local run, job = find(id), call('GET', key('job', id))
  if not run or (run.state ~= 'ready' and run.state ~= 'delayed') then
    call('ZREM', key('deadlines'), id)
  elseif not job then
    forget(id)
  else
    end_wait(id, run.lane)
    take_over(id, run, ending_work(run.cancel), job)
  end
end
-- Nobody looks at these tombstones any more (`bury`).
call('UNLINK', graves_of(2), graves_of(3))
commit()
return claims
