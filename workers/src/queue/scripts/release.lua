-- ARGV: id, fence, after, target (empty: as before), and what the claim was: 'call', 'limited' (a call that its provider put off) or
-- 'uncounted'. Answers 'done', 'elsewhere' or 'unknown'.
local id, after, target, uncounted = ARGV[1], tonumber(ARGV[3]), ARGV[4], ARGV[5] == 'uncounted'

local function release()
  local run = find(id)
  if not run then return is_buried(id) and 'elsewhere' or 'unknown' end
  if run.fence ~= ARGV[2] or run.state ~= 'leased' then return 'elsewhere' end

  local work, held = run.work, run.held
  if uncounted and work ~= 'call' then
    -- No call was made: what was to be done is still to be done, and the reaper finds it again.
    call('ZADD', key('lease'), now + after, id)
    return 'done'
  end

  free_slot(id, run)
  call('ZREM', key('lease'), id)
  run.owner, run.work, run.taken, run.waited, run.held, run.behind = nil, nil, nil, nil, nil, nil
  run.lost_worker, run.lost_fence, run.lost_attempt, run.lost_taken = nil, nil, nil, nil
  changed[id] = true

  if ARGV[5] == 'limited' and work == 'call' then run.limited = whole((tonumber(run.limited) or 0) + 1) end
  -- Whoever follows is told of the retry, and that the text which was streamed does not count. There is none when the run is to end.
  if run.log and not run.cancel and work ~= 'answer' and (not uncounted or run.log == 'd') then
    note(id, run.followers, 'r')
    run.log = '1'
  end
  -- A run that somebody wants to end is not made to wait.
  local waits = after > 0 and not run.cancel
  local since = now
  if uncounted then
    local attempts = math.max((tonumber(run.attempts) or 1) - 1, 0)
    run.attempts = whole(attempts)
    if attempts == 0 then run.started = nil end
    since = tonumber(run.ready)
    -- The account gets its turn back. An offer took none.
    local own = not has(held, 'o') and tonumber(call('ZSCORE', key('virtual', run.lane), run.account))
    if own then
      call('ZADD', key('virtual', run.lane), own - math.max(tonumber(run.tokens), 1), run.account)
      -- It is given out anew with the run. The account's other runs keep theirs while this one waits.
      if not waits then call('ZREM', key('turns', run.lane, run.scope), run.account) end
    end
  end
  if target ~= '' then run.target, run.scope = target, scope_of(run.scopes, tonumber(target)) or run.scope end

  -- Whoever comes first to a run that is to end, a claim or the reaper, is told to end it.
  begin_wait(id, run.cancel and now or run.deadline, call('STRLEN', key('job', id)))
  if waits then
    run.state = 'delayed'
    call('ZADD', key('delay'), now + after, id)
  else
    make_ready(id, run, since, true)
  end
  wake(run.scope)
  return 'done'
end

local answer = release()
commit()
return answer
