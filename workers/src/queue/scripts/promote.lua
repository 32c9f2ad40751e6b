-- Makes delayed runs ready whose moment has come; returns the set of their scopes. They go in front of their account's other
-- runs, which came after them.
local function promote()
  local scopes = {}
  local due = call('ZRANGEBYSCORE', key('delay'), '-inf', now, 'WITHSCORES', 'LIMIT', 0, 200)
  for i = 1, #due, 2 do
    local id = due[i]
    call('ZREM', key('delay'), id)
    local run = find(id)
    if run and run.state == 'delayed' and not (run.behind and stays_behind(id, run)) then
      make_ready(id, run, tonumber(due[i + 1]), true)
      scopes[run.scope] = true
    end
  end
  return scopes
end
