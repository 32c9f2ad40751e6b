-- ARGV: a new epoch, '1' when this process knew an earlier one, and how long whoever is told has to restore the runs. Answers the epoch whose runs are to be
-- restored, or nothing.
note_loss(ARGV[2] == '1', unpack(call('MGET', key('forgot'), key('epoch'))))
if call('SET', key('epoch'), ARGV[1], 'NX') then call('SET', key('unrestored'), ARGV[1]) end
local unrestored = call('GET', key('unrestored'))
if unrestored and call('SET', key('restoring'), unrestored, 'NX', 'PX', ARGV[3]) then return unrestored end
return false
