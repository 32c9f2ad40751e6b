-- The log of a run's events is the list `events:<id>`, whose n-th element is event n. The first one, 'q', has behind it when the log began, unless that
-- was with the run's submission. The run's field `log` says that there is one: 'd' while
-- text is in it that counts, '1' otherwise. `followers` are the front doors that are told, separated by spaces.

local function tell(id, followers, seq, event)
  for front_door in string.gmatch(followers or '', '%S+') do
    send(front_door, 'run', id, 'seq', seq, 'event', event)
  end
end

local function note(id, followers, event)
  tell(id, followers, redis.call('RPUSH', key('events', id), event), event)
end

local function follows(followers, front_door)
  return string.find(' ' .. (followers or '') .. ' ', ' ' .. front_door .. ' ', 1, true) ~= nil
end

local function follow(id, followers, front_door)
  if not follows(followers, front_door) then
    redis.call('HSET', key('run', id), 'followers', (followers and followers .. ' ' or '') .. front_door)
  end
end

-- Where the log stands, for the owner of a lease: the number of the next event, with a 'd' behind it while text counts.
local function mark(id, log)
  if not log then return '' end
  return (redis.call('LLEN', key('events', id)) + 1) .. (log == 'd' and 'd' or '')
end

-- The ending is the last event, for those who follow, and a message to the front door that waits. With `replies`, that is left there, to be sent
-- with others.
local function announce(id, ending, reply_to, log, followers, replies)
  if log then
    note(id, followers, 'e' .. ending)
    redis.call('PEXPIRE', key('events', id), LOG_TTL)
  end
  if not reply_to or follows(followers, reply_to) then return end
  if not replies then return reply(reply_to, ending) end
  local endings = replies[reply_to] or {}
  endings[#endings + 1] = 'ending'
  endings[#endings + 1] = ending
  replies[reply_to] = endings
end
