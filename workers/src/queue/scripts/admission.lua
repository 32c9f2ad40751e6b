-- Admission: the arguments from ARGV[first] to ARGV[last] are depth and bytes allowed, then subject and requests a minute of every rule.
-- Answers {'yes', rates…}, {'limited', rule, after, rates…} or {'full'}; the rates are, for every rule, what remains and how long until
-- its oldest request leaves the minute. A run that the queue knows is admitted already and charged nothing. `waiting` is how many runs and bytes
-- wait before a run that will wait, too.
local function admit(first, last, size, known, waiting)
  local rules, limited, after = {}, nil, 0
  for i = first + 2, last, 2 do
    local rule = { log = key('calls', ARGV[i]), limit = tonumber(ARGV[i + 1]) }
    rule.counted = count(rule.log)
    rules[#rules + 1] = rule
    if not known and rule.counted >= rule.limit then
      local wait = opens(rule.log, rule.counted, rule.limit) - now
      if wait > after then limited, after = #rules, wait end
    end
  end

  local answer
  if limited then
    answer = { 'limited', limited - 1, after }
  elseif known then
    answer = { 'yes' }
  else
    if waiting and (waiting.runs >= tonumber(ARGV[first]) or waiting.bytes + size > tonumber(ARGV[first + 1])) then
      return { 'full' }
    end
    answer = { 'yes' }
    for _, rule in ipairs(rules) do
      charge(rule.log)
      rule.counted = rule.counted + 1
    end
  end

  for _, rule in ipairs(rules) do
    local oldest = call('LINDEX', rule.log, 0)
    answer[#answer + 1] = math.max(rule.limit - rule.counted, 0)
    answer[#answer + 1] = oldest and oldest + MINUTE + 1 - now or 0
  end
  return answer
end

-- What waits has a deadline.
local function all_that_waits()
  return {
    runs = call('ZCARD', key('deadlines')),
    bytes = tonumber(call('HGET', key('meta'), 'bytes')) or 0,
  }
end
