-- Takes offers back that nobody has taken: their runs wait again, as if they had come just so.

-- Takes an offer out; answers whether it stood.
local function withdraw(offer, job, scope)
  call('LREM', key('offers', scope), 1, offer)
  call('LREM', key('offers', scope), 1, job)
  local id = string.match(offer, '^%S+')
  local run = find(id)
  if not stands(offer, run) then return false end
  call('ZREM', key('lease'), id)
  run.work, run.taken, run.started, run.held, run.attempts = nil, nil, nil, nil, nil
  begin_wait(id, run.cancel and now or run.deadline, #job)
  make_ready(id, run, tonumber(run.ready), true)
  wake(scope)
  return true
end

local function withdraw_all(scope)
  local offers = call('LRANGE', key('offers', scope), 0, -1)
  for i = 1, #offers, 2 do withdraw(offers[i], offers[i + 1], scope) end
end

-- Whether the run was offered, and not taken, and waits again.
local function withdraw_run(id, run)
  if not has(run.held, 'o') then return false end
  local offers = call('LRANGE', key('offers', run.scope), 0, -1)
  for i = 1, #offers, 2 do
    if string.sub(offers[i], 1, #id) == id then return withdraw(offers[i], offers[i + 1], run.scope) end
  end
  return false
end
