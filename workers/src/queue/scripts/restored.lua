-- ARGV: the epoch whose runs were restored. A memory that was lost since is another one.
if call('GET', key('unrestored')) == ARGV[1] then call('DEL', key('unrestored'), key('restoring')) end
return 1
