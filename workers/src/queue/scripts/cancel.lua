-- ARGV: id, how it should end ('cancelled' or 'expired'), '1' when a waiting run is only to be marked. Answers {'unknown'}, {'finished'},
-- {'signalled'} or, for a run that waits, {'waiting', its fence, a new fence, job, started, target}: nothing has changed then, and `end_waiting` ends it.
local id, how, mark = ARGV[1], ARGV[2], ARGV[3] == '1'
local state, fence, started, target, scope, held = read(id, 'state', 'fence', 'started', 'target', 'scope', 'held')
if not state then return { is_buried(id) and 'finished' or 'unknown' } end
if withdraw_run(id, scope, held) then
  state, started = 'ready', nil
end
if state == 'ended' then return { 'finished' } end
if state == 'leased' then
  redis.call('HSETNX', key('run', id), 'cancel', how)
  redis.call('PUBLISH', key('cancel'), id)
  return { 'signalled' }
end

local job = redis.call('GET', key('job', id))
if not job then
  forget(id)
  return { 'unknown' }
end
if mark then
  -- The canceller cannot read this run; whoever can will be told to end it.
  redis.call('HSETNX', key('run', id), 'cancel', how)
  redis.call('ZADD', key('deadlines'), now, id)
  return { 'signalled' }
end
return { 'waiting', fence or '0', next_fence(fence), job, started or '', target or '0' }
