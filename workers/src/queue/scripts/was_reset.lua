-- ARGV: a new epoch, the one that this process knew (empty: none), and how long whoever is told has to restore the runs. Answers the epoch by now, and the one
-- whose runs are to be restored, or nothing.
local forgot, epoch = unpack(call('MGET', key('forgot'), key('epoch')))
note_loss(ARGV[2], forgot, epoch)
if not epoch then
  epoch = ARGV[1]
  call('MSET', key('epoch'), epoch, key('unrestored'), epoch)
end
local unrestored = call('GET', key('unrestored'))
if unrestored and call('SET', key('restoring'), unrestored, 'NX', 'PX', ARGV[3]) then return { epoch, unrestored } end
return { epoch, false }
