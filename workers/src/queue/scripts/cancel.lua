-- ARGV: id, how it should end ('cancelled' or 'expired'), '1' when a waiting run is only to be marked. Answers {'unknown'}, {'finished'},
-- {'signalled'} or, for a run that waits, {'waiting', its fence, a new fence, job, started, target}: it waits on then, and `end_waiting` ends it.
local id, how, mark = ARGV[1], ARGV[2], ARGV[3] == '1'

local function flag(run)
  run.cancel = run.cancel or how
  changed[id] = true
end

local function cancel()
  local run = find(id)
  if not run then return { is_buried(id) and 'finished' or 'unknown' } end
  withdraw_run(id, run)
  if run.state == 'ended' then return { 'finished' } end
  if run.state == 'leased' then
    flag(run)
    call('PUBLISH', key('cancel'), id)
    return { 'signalled' }
  end

  local job = call('GET', key('job', id))
  if not job then
    forget(id)
    return { 'unknown' }
  end
  if mark then
    -- The canceller cannot read this run; whoever can will be told to end it.
    flag(run)
    call('ZADD', key('deadlines'), now, id)
    return { 'signalled' }
  end
  return { 'waiting', run.fence or '0', next_fence(run.fence), job, run.started or '', run.target or '0' }
end

local answer = cancel()
commit()
return answer
