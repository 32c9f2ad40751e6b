-- How runs come into the queue: by enqueue and by restore.

-- The arguments of one run from ARGV[at] on: id; its head, `<reply address, or -> <deadline> <tokens> <lane> <account> <scopes of its targets, with commas>`; the scope of
-- the first target and the deadline, again; what else is to be known; job. What else: empty for most, 'l' when the run's events are logged from the start, or
-- `<l or -> <attempts so far> <how many of them were limited> <the last fence> <the digest of its flight>`.
local PUT_ARGS = 6
local HEAD = '^(%S+) %S+ (%S+) %S+ %S+ (%S+)$'
local MORE = '^(.) (%S+) (%S+) (%S+) (%S*)$'

-- What the runs that come together have in common is written once, by `arrive`: leases, offers by scope; and of those that wait, what there is to count, and who is in
-- which line. Each is made when it is needed.
local leases, offers, lined

local function begin_put()
  leases, offers, lined, open = nil, nil, nil, {}
end

local function among(groups, name)
  local group = groups[name]
  if not group then
    group = {}
    groups[name] = group
  end
  return group
end

local function add(group, one, other)
  local at = #group
  group[at + 1], group[at + 2] = one, other
end

-- The log of a run begins anew: what an earlier one of it left is gone.
local function begin_log(id, ...)
  local events = key('events', id)
  if call('RPUSH', events, ...) > select('#', ...) then
    call('DEL', events)
    call('RPUSH', events, ...)
  end
end

-- A run that is leased as it comes. Nothing else is known of it but that it may have a log.
local function put_offered(at)
  local id, head, scope, log, job, next_event = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 4], ARGV[at + 5], ''
  room_left = room_left - 1
  write_short(id, (log == '' and 'l-' or 'll') .. NOW_US .. ' ' .. head .. ' ' .. NOW)
  write(PREFIX .. 'job:' .. id, job)
  if log ~= '' then
    begin_log(id, 'q', 's1')
    tell_of(id, given(string.match(head, '^%S+'), '-'), 2, 's1')
    next_event = '3'
  end
  leases, offers = leases or {}, offers or {}
  add(leases, open[scope], id)
  add(among(offers, scope), offer(id, NOW_US, next_event), job)
end

-- The record of a run that shares its call, or was in the queue before.
local function put_whole(at, lane, account)
  local id, reply_to, tokens, scopes = ARGV[at], string.match(ARGV[at + 1], HEAD)
  local log, attempts, limited, fence, flight = string.match(ARGV[at + 4], MORE)
  reply_to = given(reply_to, '-')
  local run = {
    state = 'ready', ready = NOW, account = account, lane = lane, scope = ARGV[at + 2], scopes = scopes, deadline = ARGV[at + 3], tokens = tokens,
    reply_to = reply_to, attempts = given(attempts, '0'), limited = given(limited, '0'), fence = given(fence, '0'), flight = given(flight, ''),
    log = log == 'l' and '1' or nil, followers = log == 'l' and reply_to or nil,
  }
  records[id], changed[id] = run, true
  return run
end

-- `began` tells this log from an earlier one of the run, which was lost: empty for the log of its submission.
local function put(at, began)
  local id, scope, deadline, more, job = ARGV[at], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local lane, account = string.match(ARGV[at + 1], '^%S+ %S+ %S+ (%S+) (%S+)')
  local run = #more > 1 and put_whole(at, lane, account)
  if not run then write_short(id, (more == '' and 'r-' or 'rl') .. '0 ' .. ARGV[at + 1] .. ' ' .. NOW) end
  write(key('job', id), job)
  if string.byte(more) == LOGGED then begin_log(id, 'q' .. began) end
  lined = lined or { runs = 0, bytes = 0, deadlines = {}, lanes = {}, lines = {}, wakes = {} }
  lined.runs = lined.runs + 1
  lined.bytes = lined.bytes + #job
  add(lined.deadlines, deadline, id)
  if run and run.flight and wait_behind(id, run) then return end
  add(among(lined.lanes, lane), NOW, id)
  local line = among(lined.lines, key('ready', lane, scope, account))
  line.lane, line.scope, line.account = lane, scope, account
  line[#line + 1] = id
  shut_room(scope)
  lined.wakes[scope] = (lined.wakes[scope] or 0) + 1
end

local function line_up_all()
  call('ZADD', key('deadlines'), unpack(lined.deadlines))
  call('HINCRBY', key('meta'), 'bytes', whole(lined.bytes))
  for lane, runs in pairs(lined.lanes) do call('ZADD', key('waiting', lane), unpack(runs)) end
  for name, line in pairs(lined.lines) do
    -- An account that has a line has its turn.
    if call('RPUSH', name, unpack(line)) == #line then take_turn(line.lane, line.scope, line.account) end
  end
  for scope, runs in pairs(lined.wakes) do
    for _ = 1, runs do
      if not wake(scope) then break end
    end
  end
end

local function arrive()
  if leases then
    call('ZADD', key('lease'), unpack(leases))
    for scope, of_scope in pairs(offers) do call('RPUSH', key('offers', scope), unpack(of_scope)) end
    write(key('room'), whole(room_left))
  end
  if lined then line_up_all() end
  commit()
  -- Nothing is kept that holds jobs.
  leases, offers, lined = nil, nil, nil
end
