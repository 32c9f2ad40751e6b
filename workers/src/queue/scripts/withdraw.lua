-- Takes offers back that nobody has taken: their runs wait again, as if they had come just so.

-- Takes one entry out; answers whether it was an offer that stood.
local function withdraw(offer, scope)
  redis.call('LREM', key('offers', scope), 1, offer)
  local id = string.match(offer, '^%S+')
  local state, fence, owner, deadline, lane, account, ready, cancel =
    read(id, 'state', 'fence', 'owner', 'deadline', 'lane', 'account', 'ready', 'cancel')
  if not stands(offer, state, fence, owner) then return false end
  redis.call('ZREM', key('lease'), id)
  redis.call('HDEL', key('run', id), 'work', 'taken', 'started', 'held', 'attempts')
  begin_wait(id, cancel and now or deadline, redis.call('STRLEN', key('job', id)))
  make_ready(id, lane, scope, account, tonumber(ready), true)
  wake(scope)
  return true
end

local function withdraw_all(scope)
  for _, offer in ipairs(redis.call('LRANGE', key('offers', scope), 0, -1)) do withdraw(offer, scope) end
end

-- Whether the run was offered, and not taken, and waits again.
local function withdraw_run(id, scope, held)
  if not has(held, 'o') then return false end
  for _, offer in ipairs(redis.call('LRANGE', key('offers', scope), 0, -1)) do
    if string.sub(offer, 1, #id) == id then return withdraw(offer, scope) end
  end
  return false
end
