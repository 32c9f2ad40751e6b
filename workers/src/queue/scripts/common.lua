-- Shared by all steps. KEYS[1] is the hash tag of the pool, `{q:<pool>}`; every other key is computed from it. That is safe on a cluster as
-- well: all keys of a pool carry the same tag, so they live in the same slot.
--
-- Times are milliseconds of this server's clock (`clock.lua`); only fences are microseconds. A Lua number holds both exactly, but its text may be cut to 14
-- digits or get an exponent: what must stay an integer is written with `whole`.

local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(now_us / 1000)

local LANES = { 'interactive', 'default', 'batch' }
local WILDCARD = '*'
local WAKE_TTL = 60000
local LOG_TTL = 600000
local MINUTE = 60000
-- One answer with claims holds no more than about this many bytes, so that it does not hold Redis up.
local ANSWER_BYTES = 4 * 1024 * 1024

local PREFIX = KEYS[1] .. ':'
local function key(name, a, b, c)
  if not a then return PREFIX .. name end
  if not b then return PREFIX .. name .. ':' .. a end
  if not c then return PREFIX .. name .. ':' .. a .. ':' .. b end
  return PREFIX .. name .. ':' .. a .. ':' .. b .. ':' .. c
end

-- Minus zero is a number too, and Redis reads its text as none: adding zero makes it zero.
local function whole(number)
  return string.format('%.0f', number + 0)
end

local NOW = whole(now)

-- What the meaning of `held` in a run is: what its call took from the limits of its scope, an 's' for a slot and a 't' for tokens; or an 'o' when it
-- was offered, and took nothing.
local function has(held, what)
  return held and string.find(held, what, 1, true) ~= nil
end

local function read(id, ...)
  return unpack(redis.call('HMGET', key('run', id), ...))
end

-- Whether an entry of `offers:<scope>` is an offer that nobody is known to have taken. It is none when Redis forgot in a crash that it was taken: then
-- somebody may have the run, or have ended it.
local function stands(offer, state, fence, owner)
  return state == 'leased' and not owner and fence == string.match(offer, '^%S+ (%S+)')
end

local NOW_US = nil
local function next_fence(previous)
  local fence = math.max((tonumber(previous) or 0) + 1, now_us)
  if fence > now_us then return whole(fence) end
  NOW_US = NOW_US or whole(now_us)
  return NOW_US
end

-- Wakes one worker that ran out of work in this scope, unless as many as are idle have been woken already: answers whether it did. A worker
-- that waits without having claimed is idle for any scope.
local function wake(scope)
  for _, name in ipairs({ scope, WILDCARD }) do
    local tokens = key('wake', name)
    local idle = redis.call('ZCOUNT', key('idle', name), now, '+inf')
    if idle > 0 and redis.call('LLEN', tokens) < idle then
      if redis.call('RPUSH', tokens, 1) == 1 then redis.call('PEXPIRE', tokens, WAKE_TTL) end
      return true
    end
  end
  return false
end

local function has_waiting(scope)
  local keys = {}
  for i, lane in ipairs(LANES) do
    keys[i] = key('turns', lane, scope)
  end
  return redis.call('EXISTS', unpack(keys)) > 0
end

-- Gives a concurrency slot back, if the call took one; whoever waits for it is woken.
local function free_slot(id, scope, held)
  if has(held, 's') and redis.call('ZREM', key('slots', scope), id) == 1 and has_waiting(scope) then
    wake(scope)
  end
end

-- From here on the run counts as waiting (ready or delayed): against depth, bytes and its deadline.
local function begin_wait(id, deadline, size)
  redis.call('ZADD', key('deadlines'), deadline, id)
  redis.call('HINCRBY', key('meta'), 'bytes', whole(size))
end

local function end_wait(id, lane)
  redis.call('ZREM', key('waiting', lane), id)
  redis.call('ZREM', key('delay'), id)
  redis.call('ZREM', key('deadlines'), id)
  redis.call('HINCRBY', key('meta'), 'bytes', whole(-redis.call('STRLEN', key('job', id))))
end

-- Gives an account with a line its turn, if it has none. One that becomes active starts at the virtual time of its lane, never before it.
local function take_turn(lane, scope, account)
  local virtual = tonumber(redis.call('HGET', key('meta'), 'virtual:' .. lane)) or 0
  local own = tonumber(redis.call('ZSCORE', key('virtual', lane), account)) or 0
  redis.call('ZADD', key('turns', lane, scope), 'NX', math.max(virtual, own), account)
end

-- Puts a run that is ready in line.
local function line_up(id, lane, scope, account, since, in_front)
  redis.call('ZADD', key('waiting', lane), since, id)
  -- An account with a line has its turn; one whose run was handed back may have lost it.
  if redis.call(in_front and 'LPUSH' or 'RPUSH', key('ready', lane, scope, account), id) > 1 and not in_front then return end
  take_turn(lane, scope, account)
end

-- No run of this scope is offered before a claim has found its lines empty.
local function close_room(scope)
  redis.call('HDEL', key('meta'), 'room:' .. scope)
end

local function make_ready(id, lane, scope, account, since, in_front)
  close_room(scope)
  redis.call('HSET', key('run', id), 'state', 'ready', 'ready', whole(since))
  line_up(id, lane, scope, account, since, in_front)
end

-- What a step tells the front doors is gathered, any number of `'ending', <ending>` and of `'run', <id>, 'seq', <number>, 'event', <event>`.
local news = {}

local function tell(front_door, ...)
  local parts = news[front_door]
  if not parts then
    parts = {}
    news[front_door] = parts
  end
  for i = 1, select('#', ...) do parts[#parts + 1] = (select(i, ...)) end
end

-- Tells each front door in the end of a step, in one message and in this order. Whoever does not hear it finds the same in the ledger and in the log
-- (`replies.rs`), so that nothing is kept here.
local function tell_all()
  for front_door, parts in pairs(news) do redis.call('PUBLISH', key('reply', front_door), cmsgpack.pack(parts)) end
end

-- Tells the front door that waits of an ending.
local function reply(front_door, ending)
  tell(front_door, 'ending', ending)
end

-- A run that is over leaves a tombstone for a while, which stops a late copy of it from coming back to life.
local function bury(id, life)
  redis.call('SET', key('done', id), 1, 'PX', life, 'NX')
end

local function is_buried(id)
  return redis.call('EXISTS', key('done', id)) == 1
end

-- Drops a run of which a part is gone (evicted, or deleted by hand): the reconciler restores what the ledger knows.
local function forget(id)
  redis.call('DEL', key('run', id), key('job', id), key('end', id), key('events', id))
  redis.call('ZREM', key('lease'), id)
  redis.call('ZREM', key('delay'), id)
  redis.call('ZREM', key('deadlines'), id)
  for _, lane in ipairs(LANES) do
    redis.call('ZREM', key('waiting', lane), id)
  end
end

-- Makes `worker` the owner of a run under a new fence, which is returned.
local function take(id, previous_fence, worker, work, lease)
  local fence = next_fence(previous_fence)
  redis.call('HSET', key('run', id), 'state', 'leased', 'fence', fence, 'owner', worker, 'work', work)
  redis.call('ZADD', key('lease'), now + lease, id)
  return fence
end
