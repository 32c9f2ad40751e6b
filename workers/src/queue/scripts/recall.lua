-- ARGV: id. Answers the job of a run and its stashed ending, both empty where there is none.
local run = find(ARGV[1])
return { run and redis.call('GET', key('job', ARGV[1])) or '', run and run.ending or '' }
