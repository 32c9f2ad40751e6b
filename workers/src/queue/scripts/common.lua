-- Shared by all steps. KEYS[1] is the hash tag of the pool, `{q:<pool>}`; every other key is computed from it. That is safe on a cluster as
-- well: all keys of a pool carry the same tag, so they live in the same slot.
--
-- Times are milliseconds of this server's clock (`clock.lua`); only fences are microseconds. A Lua number holds both exactly, but its text may be cut to 14
-- digits or get an exponent: what must stay an integer is written with `whole`.

local LANES = { 'interactive', 'default', 'batch' }
local WILDCARD = '*'
local WAKE_TTL = 60000
local LOG_TTL = '600000'
local MINUTE = 60000
-- One answer with claims holds no more than about this many bytes, so that it does not hold Redis up.
local ANSWER_BYTES = 4 * 1024 * 1024

-- A whole number as text. Written by C's integers, which is twice as fast as by its floats and knows no minus zero.
local function whole(number)
  return string.format('%d', number)
end

-- Whether one whole number is greater than another one, both as text: reading them costs ten times as much.
local function exceeds(one, other)
  if #one == #other then return one > other end
  return #one > #other
end

-- The moment of the step in milliseconds, and as text, also in microseconds.
local now, NOW, NOW_US
-- What is known of the pool between its steps (`pools`), and how its keys begin.
local pool, PREFIX
local pools = {}
-- What the step has read, what it changed, the names and values that it writes in its end, and how many they are (`record.lua`); and what it is to tell (`news_for`).
local records, changed, writes, written, news = {}, {}, {}, 0, {}

-- A library is loaded once, and what stands outside of its functions is there for all steps: so each begins with this.
local function begin()
  local seconds, micros = unpack(read_clock())
  if #micros < 6 then micros = string.rep('0', 6 - #micros) .. micros end
  NOW, NOW_US = seconds .. string.sub(micros, 1, 3), seconds .. micros
  now = tonumber(NOW)
  local tag = KEYS[1]
  pool = pools[tag]
  if not pool then
    pool = { prefix = tag .. ':', names = {} }
    pools[tag] = pool
  end
  PREFIX, records = pool.prefix, {}
  -- Nothing of a step that failed halfway is left to this one.
  if written > 0 then writes, written = {}, 0 end
  if next(changed) then changed = {} end
  if next(news) then news = {} end
end

-- A step of the queue: a function of the library that processes call.
local function step(name, flags, body)
  redis.register_function({
    function_name = LIBRARY .. '_' .. name,
    flags = flags,
    callback = function(keys, args)
      KEYS, ARGV = keys, args
      begin()
      return body()
    end,
  })
end

-- The name of a key. What is named for each run that is offered is put together in place: the calls were a twentieth of a step.
local function key(name, a, b, c)
  if not a then
    local full = pool.names[name]
    if not full then
      full = PREFIX .. name
      pool.names[name] = full
    end
    return full
  end
  if not b then return PREFIX .. name .. ':' .. a end
  if not c then return PREFIX .. name .. ':' .. a .. ':' .. b end
  return PREFIX .. name .. ':' .. a .. ':' .. b .. ':' .. c
end

-- What the meaning of `held` in a run is: what its call took from the limits of its scope, an 's' for a slot and a 't' for tokens; or an 'o' when it
-- was offered, and took nothing.
local function has(held, what)
  return held and string.find(held, what, 1, true) ~= nil
end

-- Whether an entry of `offers:<scope>` is an offer that nobody is known to have taken. It is none when Redis forgot in a crash that it was taken: then
-- somebody may have the run, or have ended it.
local function stands(offer, run)
  return run and run.state == 'leased' and not run.owner and run.fence == string.match(offer, '^%S+ (%S+)')
end

local function next_fence(previous)
  if not previous or previous == '0' then return NOW_US end
  local after = previous + 1
  return after > tonumber(NOW_US) and whole(after) or NOW_US
end

-- Wakes one worker that ran out of work in this scope, unless as many as are idle have been woken already: answers whether it did. A worker
-- that waits without having claimed is idle for any scope.
local function wake(scope)
  for _, name in ipairs({ scope, WILDCARD }) do
    local tokens = key('wake', name)
    local idle = call('ZCOUNT', key('idle', name), now, '+inf')
    if idle > 0 and call('LLEN', tokens) < idle then
      if call('RPUSH', tokens, 1) == 1 then call('PEXPIRE', tokens, WAKE_TTL) end
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
  return call('EXISTS', unpack(keys)) > 0
end

-- Gives a concurrency slot back, if the call took one; whoever waits for it is woken.
local function free_slot(id, run)
  if has(run.held, 's') and call('ZREM', key('slots', run.scope), id) == 1 and has_waiting(run.scope) then
    wake(run.scope)
  end
end

-- From here on the run counts as waiting (ready or delayed): against depth, bytes and its deadline.
local function begin_wait(id, deadline, size)
  call('ZADD', key('deadlines'), deadline, id)
  call('HINCRBY', key('meta'), 'bytes', whole(size))
end

local function end_wait(id, lane)
  call('ZREM', key('waiting', lane), id)
  call('ZREM', key('delay'), id)
  call('ZREM', key('deadlines'), id)
  call('HINCRBY', key('meta'), 'bytes', whole(-call('STRLEN', key('job', id))))
end

-- Gives an account with a line its turn, if it has none. One that becomes active starts at the virtual time of its lane, never before it.
local function take_turn(lane, scope, account)
  local virtual = tonumber(call('HGET', key('meta'), 'virtual:' .. lane)) or 0
  local own = tonumber(call('ZSCORE', key('virtual', lane), account)) or 0
  call('ZADD', key('turns', lane, scope), 'NX', math.max(virtual, own), account)
end

-- Puts a run that is ready in line.
local function line_up(id, lane, scope, account, since, in_front)
  call('ZADD', key('waiting', lane), since, id)
  -- An account with a line has its turn; one whose run was handed back may have lost it.
  if call(in_front and 'LPUSH' or 'RPUSH', key('ready', lane, scope, account), id) > 1 and not in_front then return end
  take_turn(lane, scope, account)
end

-- No run of this scope is offered before a claim has found its lines empty.
local function close_room(scope)
  call('DEL', key('room', scope))
end

local function make_ready(id, run, since, in_front)
  close_room(run.scope)
  run.state, run.ready = 'ready', whole(since)
  changed[id] = true
  line_up(id, run.lane, run.scope, run.account, since, in_front)
end

-- What a step tells the front doors is gathered, any number of `'ending', <ending>` and of `'run', <id>, 'seq', <number>, 'event', <event>`.
local function news_for(front_door)
  local parts = news[front_door]
  if not parts then
    parts = {}
    news[front_door] = parts
  end
  return parts
end

-- Tells the front door that waits of an ending.
local function reply(front_door, ending)
  local parts = news_for(front_door)
  parts[#parts + 1] = 'ending'
  parts[#parts + 1] = ending
end

-- A run that is over leaves a tombstone for a while, which stops a late copy of it from coming back to life: its id in the set of the minute. It stays for
-- one to two minutes. A set that nobody looks at any more is dropped by the reaper, beside the work of Redis; its time to live is for a queue without one.
local GRAVES_TTL = '180000'

local function graves_of(minutes_ago)
  return key('done', whole(math.floor(now / MINUTE) - minutes_ago))
end

-- The sets of this minute and of the one before.
local function graves()
  local minute = now - now % MINUTE
  if pool.minute ~= minute then pool.minute, pool.graves, pool.older_graves = minute, graves_of(0), graves_of(1) end
  return pool.graves, pool.older_graves
end

local function bury(ids)
  if #ids == 0 then return end
  local new = graves()
  call('SADD', new, unpack(ids))
  call('PEXPIRE', new, GRAVES_TTL, 'NX')
end

local NONE = {}

-- Which of these runs have a tombstone, by id.
local function find_buried(ids)
  local new, old = graves()
  local in_new, in_old = call('SMISMEMBER', new, unpack(ids)), call('SMISMEMBER', old, unpack(ids))
  local buried = NONE
  for i = 1, #ids do
    if in_new[i] == 1 or in_old[i] == 1 then
      if buried == NONE then buried = {} end
      buried[ids[i]] = true
    end
  end
  return buried
end

local function is_buried(id)
  return find_buried({ id })[id]
end

-- Drops a run of which a part is gone (evicted, or deleted by hand): the reconciler restores what the ledger knows.
local function forget(id)
  records[id], changed[id] = false, nil
  call('DEL', key('run', id), key('job', id), key('end', id), key('events', id))
  call('ZREM', key('lease'), id)
  call('ZREM', key('delay'), id)
  call('ZREM', key('deadlines'), id)
  for _, lane in ipairs(LANES) do
    call('ZREM', key('waiting', lane), id)
  end
end

-- Makes `worker` the owner of a run under a new fence.
local function take(id, run, worker, work, lease)
  run.state, run.fence, run.owner, run.work = 'leased', next_fence(run.fence), worker, work
  changed[id] = true
  call('ZADD', key('lease'), now + lease, id)
end
