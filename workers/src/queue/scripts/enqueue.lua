-- ARGV: any number of runs: of each its admission (`admission.lua`), and the run as `put` takes it. Answers as `answer_all`.

-- Offers travel whole, and those of one read together.
local OFFERED_BYTES = 256 * 1024
-- The arguments of a run.
local ARGS = ADMISSION_ARGS + PUT_ARGS

begin_put()
local before = nil

-- What waits before a run that comes now.
local function waiting()
  before = before or all_that_waits()
  return { runs = before.runs + (lined and lined.runs or 0), bytes = before.bytes + (lined and lined.bytes or 0) }
end

-- The run was sent twice, or restored from the ledger in the meantime. Only the reply address may be new.
local function meet(id, run, head, more)
  local reply_to = string.match(head, '^%S+')
  if reply_to == '-' or run.reply_to then return end
  run.reply_to = reply_to
  changed[id] = true
  if string.byte(more) == LOGGED then follow(id, run, reply_to) end
  local ending = run.state == 'ended' and call('GET', key('end', id))
  if ending then reply(reply_to, ending) end
end

-- What is known of the runs should be nothing.
local ids, scopes, runs = {}, {}, #ARGV / ARGS
for i = 1, runs do
  local at = (i - 1) * ARGS + ADMISSION_ARGS + 1
  ids[i], scopes[i] = ARGV[at], ARGV[at + 2]
end
find_with_room(ids, scopes)
local buried = find_buried(ids)

local answers = nil
for i = 1, runs do
  local first, id = (i - 1) * ARGS + 1, ids[i]
  local at = first + ADMISSION_ARGS
  local scope, deadline, more, job = scopes[i], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local run = records[id] and find(id)
  local known = run or buried[id]
  if run then meet(id, run, ARGV[at + 1], more) end
  -- Runs that share a call stand where the others of their flight find them, and no call is made for one that is over.
  local is_offered = not known and #more <= 1 and has_room(scope) and #job <= OFFERED_BYTES and exceeds(deadline, NOW)
  local is_counted = ARGV[first] ~= '' and not is_offered and not known
  local answer = admit(first, #job, known, is_counted and waiting() or nil)
  if answer then
    answers = answers or {}
    answers[i] = answer
  end
  if not known and (not answer or answer[1] == 'yes') then
    if is_offered then
      put_offered(at)
    else
      put(at, '')
    end
  end
end
arrive()
return answer_all(answers, runs)
