-- Tokens a minute: when each call of the last minute reserved its tokens (a sorted set), how many (a hash), and their sum. The
-- reservation is corrected when the call's real usage is known.

-- Drops what has left the minute and sums the rest.
local function spent(scope)
  local log, amounts = key('tokens', scope), key('amounts', scope)
  local old = call('ZRANGEBYSCORE', log, '-inf', '(' .. whole(now - MINUTE))
  for _, entry in ipairs(old) do
    call('HINCRBY', amounts, 'sum', whole(-(call('HGET', amounts, entry) or 0)))
    call('HDEL', amounts, entry)
    call('ZREM', log, entry)
  end
  -- Reserved later than now: the clock was set back, and nobody knows when it was. It counts for a minute from now, and not for longer.
  local ahead = call('ZRANGEBYSCORE', log, '(' .. NOW, '+inf')
  for _, entry in ipairs(ahead) do
    call('ZADD', log, now, entry)
  end
  if #ahead > 0 then
    call('PEXPIRE', log, MINUTE + 1000)
    call('PEXPIRE', amounts, MINUTE + 1000)
  end
  return tonumber(call('HGET', amounts, 'sum')) or 0
end

local function reserve(scope, id, fence, amount)
  local log, amounts, entry = key('tokens', scope), key('amounts', scope), id .. ':' .. fence
  call('ZADD', log, now, entry)
  call('HSET', amounts, entry, whole(amount))
  call('HINCRBY', amounts, 'sum', whole(amount))
  call('PEXPIRE', log, MINUTE + 1000)
  call('PEXPIRE', amounts, MINUTE + 1000)
end

local function settle(scope, id, fence, used)
  local amounts, entry = key('amounts', scope), id .. ':' .. fence
  local reserved = call('HGET', amounts, entry)
  if reserved then
    call('HSET', amounts, entry, whole(used))
    call('HINCRBY', amounts, 'sum', whole(used - reserved))
  end
end

-- When `need` more tokens fit under `limit`, as things stand.
local function tokens_open(scope, sum, need, limit)
  local log, amounts = key('tokens', scope), key('amounts', scope)
  local oldest = call('ZRANGE', log, 0, 199, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    sum = sum - (call('HGET', amounts, oldest[i]) or 0)
    if sum + need <= limit then return tonumber(oldest[i + 1]) + MINUTE + 1 end
  end
  return now + 1000
end
