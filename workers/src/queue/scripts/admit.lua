-- ARGV: size of the job, then the admission.
return admit(2, tonumber(ARGV[1]), false, tonumber(redis.call('HGET', key('meta'), 'bytes')) or 0)
