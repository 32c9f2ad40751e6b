-- ARGV: id. Answers the job of a run and its stashed ending, both empty where there is none.
local job, ending = unpack(call('MGET', key('job', ARGV[1]), key('end', ARGV[1])))
return { job or '', ending or '' }
