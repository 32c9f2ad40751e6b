-- ARGV: size of the job, then the admission.
return admit(2, #ARGV, tonumber(ARGV[1]), false, all_that_waits())
