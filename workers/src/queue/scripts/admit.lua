-- ARGV: any number of runs: of each, how many arguments its admission has, the size of its job, and the admission. Answers for each what `admit`
-- answers.
local waiting = all_that_waits()
local answers, at = {}, 1
while at < #ARGV do
  local last = at + 1 + tonumber(ARGV[at])
  answers[#answers + 1] = admit(at + 2, last, tonumber(ARGV[at + 1]), false, waiting)
  at = last + 1
end
return answers
