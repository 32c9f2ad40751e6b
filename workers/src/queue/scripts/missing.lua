-- ARGV: ids. Answers for each whether the queue does not know the run, tombstones included: 1 or 0.
find_all(ARGV)
local answers, unknown = {}, {}
for i, id in ipairs(ARGV) do
  answers[i] = is_known(id) and 0 or 1
  if answers[i] == 1 then unknown[#unknown + 1] = id end
end
if #unknown == 0 then return answers end
local buried = find_buried(unknown)
for i, id in ipairs(ARGV) do
  if buried[id] then answers[i] = 0 end
end
return answers
