-- Admission, two arguments: `<how many runs may wait> <how many bytes of them>`, and `<subject> <requests a minute>` of every rule, with spaces between them. An empty text
-- limits nothing.
--
-- Answers nothing when there is nothing to say but yes, or {'yes', rates…}, {'limited', rule, after, rates…} or {'full'}; the rates are, for every rule, what remains and how long until
-- its oldest request leaves the minute. A run that the queue knows is admitted already and charged nothing. `waiting` is how many runs and bytes
-- wait before a run that will wait, too.
local ADMISSION_ARGS = 2

local function admit(at, size, known, waiting)
  local limits, rules, limited, after = ARGV[at], {}, nil, 0
  if ARGV[at + 1] == '' and not waiting then return nil end
  for subject, limit in string.gmatch(ARGV[at + 1], '(%S+) (%d+)') do
    local rule = { log = key('calls', subject), limit = tonumber(limit) }
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
    if waiting and limits ~= '' then
      local depth, bytes = string.match(limits, '^(%d+) (%d+)$')
      if waiting.runs >= tonumber(depth) or waiting.bytes + size > tonumber(bytes) then return { 'full' } end
    end
    answer = { 'yes' }
    for _, rule in ipairs(rules) do
      charge(rule.log)
      rule.counted = rule.counted + 1
    end
  end
  if #rules == 0 then return nil end

  for _, rule in ipairs(rules) do
    local oldest = call('LINDEX', rule.log, 0)
    answer[#answer + 1] = math.max(rule.limit - rule.counted, 0)
    answer[#answer + 1] = oldest and oldest + MINUTE + 1 - now or 0
  end
  return answer
end

-- The answers of a step: each as `admit` gave it, or one 'yes' for all.
local function answer_all(answers, runs)
  if not answers then return 'yes' end
  for i = 1, runs do answers[i] = answers[i] or { 'yes' } end
  return answers
end

-- What waits has a deadline.
local function all_that_waits()
  return {
    runs = call('ZCARD', key('deadlines')),
    bytes = tonumber(call('HGET', key('meta'), 'bytes')) or 0,
  }
end
