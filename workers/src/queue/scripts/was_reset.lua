-- ARGV: a new epoch, '1' when this process knew an earlier one, and how long whoever is told has to restore the runs. Answers the epoch whose runs are to be
-- restored, or nothing.
note_loss(ARGV[2] == '1', unpack(redis.call('MGET', key('forgot'), key('epoch'))))
if redis.call('SET', key('epoch'), ARGV[1], 'NX') then redis.call('SET', key('unrestored'), ARGV[1]) end
local unrestored = redis.call('GET', key('unrestored'))
if unrestored and redis.call('SET', key('restoring'), unrestored, 'NX', 'PX', ARGV[3]) then return unrestored end
return false
