-- ARGV: ids. Answers how many of the runs a worker has.
find_all(ARGV)
local leased = 0
for _, id in ipairs(ARGV) do
  local record, is_leased = record_of(id), false
  if type(record) == 'string' and string.find(record, SHORT_FORM) then
    local kind = string.byte(record)
    is_leased = kind == OFFERED or kind == TAKEN
  else
    local run = find(id)
    is_leased = run and run.state == 'leased'
  end
  if is_leased then leased = leased + 1 end
end
return leased
