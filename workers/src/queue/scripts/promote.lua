-- Makes delayed runs ready whose moment has come; returns the set of their scopes. They go in front of their account's other
-- runs, which came after them.
local function promote()
  local scopes = {}
  local due = redis.call('ZRANGEBYSCORE', key('delay'), '-inf', now, 'WITHSCORES', 'LIMIT', 0, 200)
  for i = 1, #due, 2 do
    local id = due[i]
    redis.call('ZREM', key('delay'), id)
    local state, lane, scope, account, flight, behind = read(id, 'state', 'lane', 'scope', 'account', 'flight', 'behind')
    if state == 'delayed' and not (behind and stays_behind(id, flight)) then
      make_ready(id, lane, scope, account, tonumber(due[i + 1]), true)
      scopes[scope] = true
    end
  end
  return scopes
end
