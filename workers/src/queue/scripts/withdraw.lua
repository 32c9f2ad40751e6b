-- Takes offers back that nobody has taken: their runs wait again, as if they had come just so.

-- Takes one entry out; answers whether it was an offer that stood.
local function withdraw(offer, scope)
  call('LREM', key('offers', scope), 1, offer)
  local id = string.match(offer, '^%S+')
  local run = find(id)
  if not stands(offer, run) then return false end
  call('ZREM', key('lease'), id)
  run.work, run.taken, run.started, run.held, run.attempts = nil, nil, nil, nil, nil
  begin_wait(id, run.cancel and now or run.deadline, call('STRLEN', key('job', id)))
  make_ready(id, run, tonumber(run.ready), true)
  wake(scope)
  return true
end

local function withdraw_all(scope)
  for _, offer in ipairs(call('LRANGE', key('offers', scope), 0, -1)) do withdraw(offer, scope) end
end

-- Whether the run was offered, and not taken, and waits again.
local function withdraw_run(id, run)
  if not has(run.held, 'o') then return false end
  for _, offer in ipairs(call('LRANGE', key('offers', run.scope), 0, -1)) do
    if string.sub(offer, 1, #id) == id then return withdraw(offer, run.scope) end
  end
  return false
end
