-- Takes offers back that nobody has taken.

-- Whether the offer of a run was still there. The run waits again then, as if it had come just so.
local function withdraw(id, scope)
  local offers, found = key('offers', scope), nil
  for _, offer in ipairs(redis.call('LRANGE', offers, 0, -1)) do
    if string.sub(offer, 1, #id) == id then found = offer end
  end
  if not found or redis.call('LREM', offers, 1, found) == 0 then return false end
  local deadline, lane, account, ready, cancel = read(id, 'deadline', 'lane', 'account', 'ready', 'cancel')
  redis.call('ZREM', key('lease'), id)
  redis.call('HDEL', key('run', id), 'work', 'taken', 'started', 'held', 'attempts')
  begin_wait(id, cancel and now or deadline, redis.call('STRLEN', key('job', id)))
  make_ready(id, lane, scope, account, tonumber(ready), true)
  wake(scope)
  return true
end

local function withdraw_all(scope)
  for _, offer in ipairs(redis.call('LRANGE', key('offers', scope), 0, -1)) do
    withdraw(string.match(offer, '^%S+'), scope)
  end
end
