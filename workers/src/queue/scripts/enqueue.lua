-- ARGV: any number of runs: of each, how many arguments its admission has, the run as `put` takes it, and the admission. Answers for each what `admit`
-- answers, or {'yes'}.

-- Offers travel whole, and those of one read together.
local OFFERED_BYTES = 256 * 1024

begin_put()
local before = nil

-- What waits before a run that comes now.
local function waiting()
  before = before or all_that_waits()
  return { runs = before.runs + came.waiting, bytes = before.bytes + came.bytes }
end

-- Where each run begins, and how many arguments there are up to its end; and what is known of them, which should be nothing.
local runs, ids = {}, {}
do
  local at = 1
  while at < #ARGV do
    local last = at + PUT_ARGS + tonumber(ARGV[at])
    add(runs, at + 1, last)
    ids[#ids + 1] = ARGV[at + 1]
    at = last + 1
  end
end
find_all(ids)
local buried = find_buried(ids)

local function enqueue(at, last)
  local id, scope, deadline, flight, log, reply_to, job =
    ARGV[at], ARGV[at + 3], ARGV[at + 5], ARGV[at + 10], ARGV[at + 11], ARGV[at + 12], ARGV[at + 13]
  local run = find(id)
  local known = run or buried[id]
  -- Sent twice, or restored from the ledger in the meantime. Then only the reply address may be new.
  if run and reply_to ~= '' and not run.reply_to then
    run.reply_to = reply_to
    changed[id] = true
    if log ~= '' then follow(id, run, reply_to) end
    local ending = run.state == 'ended' and call('GET', key('end', id))
    if ending then reply(reply_to, ending) end
  end

  -- Runs that share a call stand where the others of their flight find them, and no call is made for one that is over.
  local is_offered = not known and flight == '' and #job <= OFFERED_BYTES and tonumber(deadline) > now and has_room(scope)
  local first, answer = at + PUT_ARGS, { 'yes' }
  if last >= first then answer = admit(first, last, #job, known, not is_offered and not known and waiting() or nil) end
  if answer[1] == 'yes' and is_offered then
    put_offered(at, take_room(scope))
  elseif answer[1] == 'yes' and not known then
    put(at, '')
  end
  return answer
end

local answers = {}
for i = 1, #runs, 2 do
  answers[#answers + 1] = enqueue(runs[i], runs[i + 1])
end
arrive()
return answers
