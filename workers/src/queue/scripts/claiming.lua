-- ARGV: worker, how many runs at most, lease, the epoch that this process knew (empty: none), '1' when an earlier claim has just registered the
-- worker as idle, '1' when the worker waits for runs after this, so that some may be offered to it, then of every scope its
-- name, concurrency, requests a minute, tokens a minute and calls that may leave at once (empty: no limit), and how long until one more may leave than those.
-- Answers {how long until a run that was held back could go, or -1, {claims…}}; 0 when there is more to hand out at once.
local worker, free, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- So long runs are offered after a claim said that there is room. A worker that waits claims more often than that.
local ROOM_TTL = 5000
local IDLE_TTL = 45000

local scopes, named, unlimited = {}, {}, {}
for i = 7, #ARGV, 6 do
  local scope = {
    name = ARGV[i],
    max_slots = tonumber(ARGV[i + 1]),
    max_requests = tonumber(ARGV[i + 2]),
    max_tokens = tonumber(ARGV[i + 3]),
    at_once = tonumber(ARGV[i + 4]),
    next_call = tonumber(ARGV[i + 5]),
    heads = {},
    lines = {},
    alone = {},
  }
  scopes[#scopes + 1] = scope
  named[scope.name] = true
  if not (scope.max_slots or scope.max_requests or scope.max_tokens or scope.at_once) then unlimited[#unlimited + 1] = scope end
end

-- A worker with free slots left is idle: new work of its scopes wakes it.
local function set_idle(is_idle)
  if is_idle == (ARGV[5] == '1') then return end
  for _, scope in ipairs(scopes) do
    local idle = key('idle', scope.name)
    if is_idle then
      call('ZADD', idle, now + IDLE_TTL, worker)
      call('PEXPIRE', idle, IDLE_TTL)
      call('SADD', key('scopes'), scope.name)
    else
      call('ZREM', idle, worker)
    end
  end
end

-- What is handed out, two texts for each run: what there is to know of the claim (`head_of`), and the job.
local claims, taken, bytes = {}, 0, 0

local function claimed(id, run, job, number, waited)
  bytes, taken = bytes + #job, taken + 1
  claims[2 * taken - 1], claims[2 * taken] = head_of(id, run, run.work, number, waited), job
end

-- Offers that nobody has taken come first. Whoever took one after all has lost it with this.
local function adopt(scope)
  while taken < free and bytes <= ANSWER_BYTES do
    local entries = call('LPOP', key('offers', scope), 2)
    if not entries then return end
    local offer, job = unpack(entries)
    local id = string.match(offer, '^%S+')
    local run = find(id)
    if stands(offer, run) then
      local work = run.cancel == 'cancelled' and 'cancel' or (run.cancel or tonumber(run.deadline) <= now) and 'expire' or 'call'
      if work == 'call' then
        run.taken = NOW
      else
        -- No call of it was made, and none will be.
        run.attempts, run.taken, run.started = nil, nil, nil
      end
      take(id, run, worker, work, lease)
      claimed(id, run, job, '1', whole(math.max(now - tonumber(run.ready), 0)))
    end
  end
end

-- As many runs of the scopes without limits as this worker has executors left may be offered from now on.
local function give_room()
  if ARGV[6] ~= '1' or #unlimited == 0 then return end
  if taken >= free then
    write(key('room'), '0')
    return
  end
  write(key('room'), whole(free - taken))
  write(key('room_until'), whole(now + ROOM_TTL))
  local names = {}
  for i, scope in ipairs(unlimited) do
    names[2 * i - 1], names[2 * i] = key('paused', scope.name), key('room', scope.name)
  end
  local found = call('MGET', unpack(names))
  for i, scope in ipairs(unlimited) do
    local is_paused, is_open = found[2 * i - 1], found[2 * i]
    if not is_paused then write(key('room', scope.name), whole(lease)) end
    -- Whoever pauses the queue must find the scope, also in a new memory in which this worker has not been registered.
    if not is_open then call('SADD', key('scopes'), scope.name) end
  end
end

-- The beginnings of the lines: read more at a time the further a claim gets into a line, and taken out together.
local fronts = {}

local function take_out(line, front)
  if front.at > 1 then call('LPOP', line, front.at - 1) end
end

-- The first run of a line, and whoever comes after it.
local function first_two(line)
  local front = fronts[line]
  if not front then
    front = { ids = {}, at = 1, size = 2 }
    fronts[line] = front
  end
  if front.at >= #front.ids and not front.is_all then
    take_out(line, front)
    front.ids, front.at = call('LRANGE', line, 0, front.size - 1), 1
    front.is_all = #front.ids < front.size
    front.size = 4 * front.size
  end
  return front.ids[front.at], front.ids[front.at + 1]
end

local function pass(line)
  fronts[line].at = fronts[line].at + 1
end
