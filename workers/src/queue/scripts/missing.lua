-- ARGV: ids. Answers for each whether the queue does not know the run, tombstones included: 1 or 0.
find_all(ARGV)
local buried, answers = find_buried(ARGV), {}
for i, id in ipairs(ARGV) do
  answers[i] = (buried[id] or find(id)) and 0 or 1
end
return answers
