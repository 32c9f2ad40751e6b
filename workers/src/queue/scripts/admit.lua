-- ARGV: size of the job, then the admission.
return admit(2, tonumber(ARGV[1]))
