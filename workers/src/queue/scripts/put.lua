-- How a run comes into the queue: by enqueue and by restore.

-- The arguments of one run from ARGV[at] on: id, account, lane, scope of the first target, scopes of all targets as JSON (empty
-- when there is one), deadline, tokens, attempts so far, how many of them were limited, the last fence (0: none), the digest of
-- its flight (or empty), '1' when its events are logged from the start, reply address (or empty), job.
local PUT_ARGS = 14

-- `began` tells this log from an earlier one of the run, which was lost: empty for the log of its submission. With `offered`, a lease, the run does
-- not wait.
local function put(at, began, offered)
  local id, account, lane, scope = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local scopes, deadline, tokens, attempts, limited, fence = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8], ARGV[at + 9]
  local flight, log, reply_to, job = ARGV[at + 10], ARGV[at + 11], ARGV[at + 12], ARGV[at + 13]
  local fields = {
    'state', offered and 'leased' or 'ready', 'ready', NOW, 'account', account, 'lane', lane, 'scope', scope, 'deadline', deadline, 'tokens', tokens,
  }
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if scopes ~= '' then set('scopes', scopes) end
  if attempts ~= '0' then set('attempts', attempts) end
  if limited ~= '0' then set('limited', limited) end
  if fence ~= '0' then set('fence', fence) end
  if reply_to ~= '' then set('reply_to', reply_to) end
  if flight ~= '' then set('flight', flight) end
  if log ~= '' then
    set('log', '1')
    if reply_to ~= '' then set('followers', reply_to) end
    redis.call('DEL', key('events', id))
    redis.call('RPUSH', key('events', id), 'q' .. began)
  end
  if offered then
    fence = next_fence(fence)
    set('fence', fence)
    set('work', 'call')
    set('attempts', '1')
    set('taken', NOW)
    set('started', NOW)
    set('held', 'o')
  end
  redis.call('SET', key('job', id), job)
  redis.call('HSET', key('run', id), unpack(fields))
  if offered then
    redis.call('ZADD', key('lease'), now + offered, id)
    if log ~= '' then note(id, reply_to, 's1') end
    return offer(id, scope, fence, log ~= '', job)
  end
  begin_wait(id, deadline, #job)
  if flight ~= '' and wait_behind(id, lane, flight, tonumber(deadline)) then return end
  line_up(id, lane, scope, account, now, false)
  wake(scope)
end
