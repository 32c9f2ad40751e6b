-- ARGV: id, the fence that `cancel` saw, the new fence, lease, ending. Answers 1, or 0 when the run no longer waits under that fence.
-- The lease makes the reaper record the ending if the canceller does not.
local id, ending = ARGV[1], ARGV[5]
local state, fence, lane, reply_to, log, followers = read(id, 'state', 'fence', 'lane', 'reply_to', 'log', 'followers')
if (state ~= 'ready' and state ~= 'delayed') or (fence or '0') ~= ARGV[2] then return 0 end

end_wait(id, lane)
redis.call('SET', key('end', id), ending)
redis.call('HSET', key('run', id), 'state', 'ended', 'fence', ARGV[3], 'work', 'record')
redis.call('ZADD', key('lease'), now + tonumber(ARGV[4]), id)
announce(id, ending, reply_to, log, followers)
tell_all()
return 1
