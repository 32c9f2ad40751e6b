-- A claim: offers that nobody took, then what waits in line, shared by lanes, scopes and accounts.

local WEIGHT = { interactive = 8, default = 3, batch = 1 }
-- After so long the first run of a lane has waited too long: its lane has twice the weight, and tokens are saved up for it.
local PATIENCE = { interactive = 10000, default = 30000, batch = 60000 }
-- At most so many entries of ended runs are swept out of the lists in one step.
local SWEEP = 500
-- Accounts that a lane has passed are swept out when its virtual time passes a multiple of this.
local SWEPT_EVERY = 20000

local all_paused, forgot, epoch = unpack(call('MGET', key('paused'), key('forgot'), key('epoch')))
if all_paused then
  set_idle(true)
  return { -1, {} }
end

local function first_delayed()
  return tonumber(call('ZRANGE', key('delay'), 0, 0, 'WITHSCORES')[2]) or math.huge
end
local upcoming = first_delayed()
if upcoming <= now then
  for scope in pairs(promote()) do
    if not named[scope] then wake(scope) end
  end
  upcoming = first_delayed()
end

-- What was forgotten may still be in a call (for as long as a lease), and its requests and tokens count for a minute.
forgot = note_loss(ARGV[4], forgot, epoch)

local offers = {}
for i, scope in ipairs(unlimited) do offers[i] = key('offers', scope.name) end
if #offers > 0 and call('EXISTS', unpack(offers)) > 0 then
  for _, scope in ipairs(unlimited) do adopt(scope.name) end
end

-- The lines that there are.
local turns = {}
for _, lane in ipairs(LANES) do
  for _, scope in ipairs(scopes) do
    turns[#turns + 1] = key('turns', lane, scope.name)
  end
end
local left = #turns > 0 and call('EXISTS', unpack(turns)) or 0
if left == 0 then
  set_idle(taken < free)
  give_room()
  commit()
  return { upcoming == math.huge and -1 or math.max(upcoming - now, 0), claims }
end
for i, lane in ipairs(LANES) do
  for j, scope in ipairs(scopes) do
    local line = turns[(i - 1) * #scopes + j]
    if left > 0 and call('EXISTS', line) == 1 then
      left = left - 1
      scope.lines[lane] = line
      scope.is_busy = true
    end
  end
end

local meta, fields = {}, { 'bytes' }
for _, lane in ipairs(LANES) do
  fields[#fields + 1] = 'credit:' .. lane
  fields[#fields + 1] = 'virtual:' .. lane
end
local values = call('HMGET', key('meta'), unpack(fields))
for i, lane in ipairs(LANES) do
  meta[lane] = { credit = tonumber(values[2 * i]) or 0, virtual = tonumber(values[2 * i + 1]) or 0 }
end
local waiting_bytes = tonumber(values[1]) or 0

-- What the scope's limits have left.
local busy = {}
for _, scope in ipairs(scopes) do
  if scope.is_busy then
    busy[#busy + 1] = scope
    local paused = tonumber(call('GET', key('paused', scope.name)))
    if forgot and (scope.max_requests or scope.max_tokens) then
      paused = math.max(paused or 0, forgot + MINUTE + 1)
    elseif forgot and scope.max_slots then
      paused = math.max(paused or 0, forgot + lease)
    end
    if paused and paused > now then scope.paused = paused end
    if scope.max_slots then
      call('ZREMRANGEBYSCORE', key('slots', scope.name), '-inf', now)
      scope.slots = scope.max_slots - call('ZCARD', key('slots', scope.name))
    end
    if scope.max_requests then
      scope.counted = count(key('requests', scope.name))
    end
    if scope.max_tokens then
      scope.spent = spent(scope.name)
    end
  end
end

-- A run that reserves more than a whole minute allows is charged the whole minute: it goes alone.
local function need(scope, head)
  return math.min(head.tokens, scope.max_tokens)
end

-- Why a call in this scope has to wait: nil when it has not.
local function obstacle(scope, head)
  if scope.paused then return 'paused' end
  if scope.slots and scope.slots <= 0 then return 'slots' end
  if scope.counted and scope.counted >= scope.max_requests then return 'requests' end
  if scope.spent and scope.spent + need(scope, head) > scope.max_tokens then return 'tokens' end
  if scope.at_once and scope.at_once <= 0 then return 'pace' end
  return nil
end

local function opens_at(scope, head)
  local why = obstacle(scope, head)
  if why == 'paused' then return scope.paused end
  if why == 'slots' then
    local first = call('ZRANGE', key('slots', scope.name), 0, 0, 'WITHSCORES')
    return (tonumber(first[2]) or (now + lease)) + 1
  end
  if why == 'requests' then return opens(key('requests', scope.name), scope.counted, scope.max_requests) end
  if why == 'tokens' then return tokens_open(scope.name, scope.spent, need(scope, head), scope.max_tokens) end
  if why == 'pace' then return now + scope.next_call end
  return now + 1000
end

-- The virtual times of accounts: read once, and written once in the end.
local times = {}
for _, lane in ipairs(LANES) do
  times[lane] = { known = {}, changed = {} }
end

local function time_of(lane, account)
  local known = times[lane].known
  known[account] = known[account] or tonumber(call('ZSCORE', key('virtual', lane), account)) or 0
  return known[account]
end

local function set_turn(scope, lane, account, virtual)
  local alone = scope.alone[lane]
  if alone then
    alone.virtual = virtual
    alone.moved = true
  else
    call('ZADD', scope.lines[lane], 'XX', virtual, account)
  end
end

-- The account has no run left in the line.
local function leave_line(scope, lane, account)
  call('ZREM', scope.lines[lane], account)
  if scope.alone[lane] then
    scope.alone[lane], scope.lines[lane] = nil, nil
  end
end

-- The run whose turn it is in a lane of a scope: the first one of the account with the lowest virtual time. Entries of runs that have left the
-- line in another way (cancelled, expired) are swept out here.
local swept = 0
local function find_head(lane, scope)
  local turns = scope.lines[lane]
  while turns do
    local alone = scope.alone[lane]
    local account, virtual
    if alone then
      account, virtual = alone.account, alone.virtual
    else
      local first = call('ZRANGE', turns, 0, 1, 'WITHSCORES')
      account, virtual = first[1], tonumber(first[2])
      if not account then
        scope.lines[lane] = nil
        return false
      end
      -- Nobody else comes into a line while this claim looks at it.
      if not first[3] then scope.alone[lane] = { account = account, virtual = virtual } end
    end
    -- The account may have had turns in other scopes of the lane since.
    local own = time_of(lane, account)
    local line = key('ready', lane, scope.name, account)
    local id, next_id = first_two(line)
    if not id then
      leave_line(scope, lane, account)
      turns = scope.lines[lane]
    elseif own > virtual then
      set_turn(scope, lane, account, own)
    else
      local run = find_waiting(id)
      if run and run.state == 'ready' and run.scope == scope.name then
        local work = 'call'
        if run.cancel then
          work = run.cancel == 'expired' and 'expire' or 'cancel'
        elseif tonumber(run.deadline) <= now then
          work = 'expire'
        end
        -- What is not called for is ended, which takes the whole record.
        if work ~= 'call' then run = find(id) end
        return {
          id = id, run = run, account = account, virtual = virtual, line = line, lane = lane, scope = scope,
          work = work, ready = tonumber(run.ready), tokens = tonumber(run.tokens), is_last = not next_id,
        }
      end
      pass(line)
      swept = swept + 1
      if swept >= SWEEP then return false end
    end
  end
  return false
end

-- The run that goes next, over all lanes and scopes; nil when none may.
local function choose()
  local best, weights, total = {}, {}, 0
  for _, scope in ipairs(busy) do
    local saving = false
    for _, lane in ipairs(LANES) do
      local head = scope.heads[lane]
      if head == nil then
        head = find_head(lane, scope)
        scope.heads[lane] = head
      end
      if head and head.work == 'call' and now - head.ready > PATIENCE[lane] and obstacle(scope, head) == 'tokens' then
        saving = true
      end
    end
    for _, lane in ipairs(LANES) do
      local head = scope.heads[lane]
      if head and (head.work ~= 'call' or (not saving and not obstacle(scope, head))) then
        local other = best[lane]
        if not other or head.virtual < other.virtual or (head.virtual == other.virtual and head.ready < other.ready) then
          best[lane] = head
        end
      end
    end
  end
  local chosen
  for _, lane in ipairs(LANES) do
    local head = best[lane]
    if head then
      local weight = WEIGHT[lane]
      if now - head.ready > PATIENCE[lane] then weight = 2 * weight end
      weights[lane] = weight
      total = total + weight
      if not chosen or meta[lane].credit + weight > meta[chosen].credit + weights[chosen] then chosen = lane end
    end
  end
  return best[chosen], weights, total
end

-- What is written once for all claims: who no longer waits, and the leases.
local left_lane, left_all, leases = {}, {}, {}
local lease_end = whole(now + lease)

-- Hands a run out, with everything that it takes from the limits.
local function hand_out(head)
  local id, run, scope, lane = head.id, head.run, head.scope, head.lane
  pass(head.line)
  scope.heads[lane] = nil
  local job = call('GET', key('job', id))
  if not job then
    forget(id)
    return
  end
  local number = whole((tonumber(run.attempts) or 0) + 1)
  local waited = whole(math.max(now - head.ready, 0))
  local held = (scope.slots and 's' or '') .. (scope.spent and 't' or '')
  if run.short then
    claim_short(id, run, worker, held)
  else
    run.fence, changed[id] = next_fence(run.fence), true
  end
  run.state, run.owner, run.work = 'leased', worker, head.work
  left_lane[lane] = left_lane[lane] or {}
  table.insert(left_lane[lane], id)
  left_all[#left_all + 1] = id
  add(leases, lease_end, id)
  waiting_bytes = waiting_bytes - #job
  if head.work == 'call' then
    run.attempts, run.taken, run.waited, run.started = number, NOW, waited, run.started or NOW
    run.held = held
    if run.log then note(id, run.followers, 's' .. number) end
    if scope.slots then
      call('ZADD', key('slots', scope.name), lease_end, id)
      scope.slots = scope.slots - 1
    end
    if scope.at_once then scope.at_once = scope.at_once - 1 end
    if scope.counted then
      charge(key('requests', scope.name))
      scope.counted = scope.counted + 1
    end
    if scope.spent then
      reserve(scope.name, id, run.fence, need(scope, head))
      scope.spent = scope.spent + need(scope, head)
    end
    -- The account pays for its turn in virtual time. One that was held back for long starts from the lane's time, so that it
    -- cannot make up for it at the cost of the others.
    local start = math.max(head.virtual, meta[lane].virtual)
    meta[lane].virtual = start
    local after = start + math.max(head.tokens, 1)
    times[lane].known[head.account] = after
    times[lane].changed[head.account] = after
    if head.is_last then
      leave_line(scope, lane, head.account)
    else
      set_turn(scope, lane, head.account, after)
    end
    for _, other in ipairs(busy) do
      local stale = other.heads[lane]
      if stale and stale.account == head.account then other.heads[lane] = nil end
    end
  end
  claimed(id, run, job, number, waited)
end

local more = nil
while true do
  local head, weights, total = choose()
  if not head then break end
  if taken >= free or bytes > ANSWER_BYTES then
    more = head
    break
  end
  for lane, weight in pairs(weights) do
    meta[lane].credit = meta[lane].credit + weight
  end
  meta[head.lane].credit = meta[head.lane].credit - total
  hand_out(head)
end

for line, front in pairs(fronts) do take_out(line, front) end
for _, scope in ipairs(busy) do
  for lane, alone in pairs(scope.alone) do
    if alone.moved then call('ZADD', scope.lines[lane], 'XX', alone.virtual, alone.account) end
  end
end
for _, lane in ipairs(LANES) do
  local changed = {}
  for account, virtual in pairs(times[lane].changed) do
    changed[#changed + 1] = virtual
    changed[#changed + 1] = account
  end
  if #changed > 0 then call('ZADD', key('virtual', lane), unpack(changed)) end
end

if #left_all > 0 then
  local changed = { 'bytes', whole(waiting_bytes) }
  for i, lane in ipairs(LANES) do
    local credit, virtual = meta[lane].credit, meta[lane].virtual
    if credit ~= (tonumber(values[2 * i]) or 0) then
      changed[#changed + 1] = 'credit:' .. lane
      changed[#changed + 1] = credit
    end
    local before = tonumber(values[2 * i + 1]) or 0
    if virtual ~= before then
      changed[#changed + 1] = 'virtual:' .. lane
      changed[#changed + 1] = whole(virtual)
      -- An account whose time the lane has passed is as good as new. They are swept out now and then.
      if math.floor(virtual / SWEPT_EVERY) ~= math.floor(before / SWEPT_EVERY) then
        call('ZREMRANGEBYSCORE', key('virtual', lane), '-inf', '(' .. whole(virtual))
      end
    end
    if left_lane[lane] then call('ZREM', key('waiting', lane), unpack(left_lane[lane])) end
  end
  call('HSET', key('meta'), unpack(changed))
  call('ZREM', key('deadlines'), unpack(left_all))
  call('ZADD', key('lease'), unpack(leases))
end

set_idle(taken < free)
if more then wake(more.scope.name) end
-- There is room only when nothing is left in line, and none when this worker is full.
if taken >= free or not (more or swept >= SWEEP) then give_room() end

for _, scope in ipairs(busy) do
  for _, lane in ipairs(LANES) do
    if scope.heads[lane] then upcoming = math.min(upcoming, opens_at(scope, scope.heads[lane])) end
  end
end
if more or swept >= SWEEP then upcoming = now end
commit()
return { upcoming == math.huge and -1 or math.max(upcoming - now, 0), claims }
