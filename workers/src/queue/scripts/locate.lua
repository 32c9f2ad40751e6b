-- ARGV: id. Answers the state of a run and when it was first taken, both empty where there is none.
local run = find(ARGV[1])
return { run and run.state or '', run and run.started or '' }
