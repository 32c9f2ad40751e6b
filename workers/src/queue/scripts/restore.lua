-- ARGV: any number of runs as `put` takes them. Those that the queue knows are left as they are.
for at = 1, #ARGV, PUT_ARGS do
  if redis.call('EXISTS', key('run', ARGV[at]), key('done', ARGV[at])) == 0 then put(at, whole(now_us)) end
end
arrive()
return 1
