-- Tokens a minute: when each call of the last minute reserved its tokens (a sorted set), how many (a hash), and their sum. The
-- reservation is corrected when the call's real usage is known.

-- Drops what has left the minute and sums the rest.
local function spent(scope)
  local log, amounts = key('tokens', scope), key('amounts', scope)
  local old = redis.call('ZRANGEBYSCORE', log, '-inf', '(' .. whole(now - MINUTE))
  for _, call in ipairs(old) do
    redis.call('HINCRBY', amounts, 'sum', whole(-(redis.call('HGET', amounts, call) or 0)))
    redis.call('HDEL', amounts, call)
    redis.call('ZREM', log, call)
  end
  -- Reserved later than now: the clock was set back, and nobody knows when it was. It counts for a minute from now, and not for longer.
  local ahead = redis.call('ZRANGEBYSCORE', log, '(' .. NOW, '+inf')
  for _, call in ipairs(ahead) do
    redis.call('ZADD', log, now, call)
  end
  if #ahead > 0 then
    redis.call('PEXPIRE', log, MINUTE + 1000)
    redis.call('PEXPIRE', amounts, MINUTE + 1000)
  end
  return tonumber(redis.call('HGET', amounts, 'sum')) or 0
end

local function reserve(scope, id, fence, amount)
  local log, amounts, call = key('tokens', scope), key('amounts', scope), id .. ':' .. fence
  redis.call('ZADD', log, now, call)
  redis.call('HSET', amounts, call, whole(amount))
  redis.call('HINCRBY', amounts, 'sum', whole(amount))
  redis.call('PEXPIRE', log, MINUTE + 1000)
  redis.call('PEXPIRE', amounts, MINUTE + 1000)
end

local function settle(scope, id, fence, used)
  local amounts, call = key('amounts', scope), id .. ':' .. fence
  local reserved = redis.call('HGET', amounts, call)
  if reserved then
    redis.call('HSET', amounts, call, whole(used))
    redis.call('HINCRBY', amounts, 'sum', whole(used - reserved))
  end
end

-- When `need` more tokens fit under `limit`, as things stand.
local function tokens_open(scope, sum, need, limit)
  local log, amounts = key('tokens', scope), key('amounts', scope)
  local oldest = redis.call('ZRANGE', log, 0, 199, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    sum = sum - (redis.call('HGET', amounts, oldest[i]) or 0)
    if sum + need <= limit then return tonumber(oldest[i + 1]) + MINUTE + 1 end
  end
  return now + 1000
end
