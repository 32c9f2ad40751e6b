-- ARGV: id, the fence that `cancel` saw, the new fence, lease, ending. Answers 1, or 0 when the run no longer waits under that fence.
-- The lease makes the reaper record the ending if the canceller does not.
local id = ARGV[1]
local run = find(id)
if not run or (run.state ~= 'ready' and run.state ~= 'delayed') or (run.fence or '0') ~= ARGV[2] then return 0 end

end_wait(id, run.lane)
run.state, run.fence, run.work = 'ended', ARGV[3], 'record'
write(key('end', id), ARGV[5])
changed[id] = true
call('ZADD', key('lease'), now + tonumber(ARGV[4]), id)
announce(id, run, ARGV[5])
commit()
return 1
