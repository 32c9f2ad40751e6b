-- ARGV: worker, for how long it then is the only one. Answers 1 when it may compare the ledger with the queue; again while it does.
local by = call('GET', key('swept'))
if by and by ~= ARGV[1] then return 0 end
call('SET', key('swept'), ARGV[1], 'PX', ARGV[2])
return 1
