-- ARGV: any number of runs: of each its admission, and the size of its job. Answers {as `answer_all`, how many runs wait, how many bytes they have}.
local waiting = all_that_waits()
local answers, runs = nil, 0
for at = 1, #ARGV, ADMISSION_ARGS + 1 do
  runs = runs + 1
  local answer = admit(at, tonumber(ARGV[at + ADMISSION_ARGS]), false, waiting)
  if answer then
    answers = answers or {}
    answers[runs] = answer
  end
end
return { answer_all(answers, runs), waiting.runs, waiting.bytes }
