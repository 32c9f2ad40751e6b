-- ARGV: any number of runs as `put` takes them. Those that the queue knows are left as they are.
begin_put()
local ids = {}
for at = 1, #ARGV, PUT_ARGS do ids[#ids + 1] = ARGV[at] end
find_all(ids)
local buried = find_buried(ids)
for i, id in ipairs(ids) do
  if not find(id) and not buried[id] then put(1 + (i - 1) * PUT_ARGS, NOW_US) end
end
arrive()
return 1
