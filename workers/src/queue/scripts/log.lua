-- The log of a run's events is the list `events:<id>`, whose n-th element is event n. The first one, 'q', has behind it when the log began, unless that
-- was with the run's submission. The run's field `log` says that there is one: 'd' while
-- text is in it that counts, '1' otherwise. `followers` are the front doors that are told, separated by spaces.

local function tell_of(id, followers, seq, event)
  for front_door in string.gmatch(followers or '', '%S+') do
    local parts = news_for(front_door)
    local at = #parts
    parts[at + 1], parts[at + 2], parts[at + 3], parts[at + 4], parts[at + 5], parts[at + 6] = 'run', id, 'seq', seq, 'event', event
  end
end

local function note(id, followers, event)
  tell_of(id, followers, call('RPUSH', key('events', id), event), event)
end

-- Text as a step brings it, from the argument `at` on: the place that the first delta should get, how many bytes the call has said before, how many deltas there
-- are, and the deltas. Answers where the next argument is.
local function after_text(at)
  return at + 3 + tonumber(ARGV[at + 2])
end

-- Adds the text at `at` to the log, up to `most` bytes of a call. Deltas whose places are taken came with a step whose answer was lost. With `ending`,
-- that comes last.
local function note_text(id, followers, at, most, ending)
  local place, said, events = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), PREFIX .. 'events:' .. id
  local entries, length = {}, call('LLEN', events)
  for i = at + 3, after_text(at) - 1 do
    local delta = ARGV[i]
    said = said + #delta
    if place > length then
      local event = 'd' .. delta
      entries[#entries + 1] = said <= most and event or 'x'
      tell_of(id, followers, length + #entries, event)
    end
    place = place + 1
  end
  if ending then
    entries[#entries + 1] = ending
    tell_of(id, followers, length + #entries, ending)
  end
  if #entries > 0 then call('RPUSH', events, unpack(entries)) end
end

local function follows(followers, front_door)
  return string.find(' ' .. (followers or '') .. ' ', ' ' .. front_door .. ' ', 1, true) ~= nil
end

local function follow(id, run, front_door)
  if not follows(run.followers, front_door) then
    run.followers = (run.followers and run.followers .. ' ' or '') .. front_door
    changed[id] = true
  end
end

-- Where the log stands, for the owner of a lease: the number of the next event, with a 'd' behind it while text counts.
local function mark(id, log)
  if not log then return '' end
  return (call('LLEN', key('events', id)) + 1) .. (log == 'd' and 'd' or '')
end

-- What there is to know of a claim: `<id> <fence> <number of the attempt> <attempts that were limited> <number of the target> <waited> <first taken> <work> <mark>`. Of a
-- call that was lost, `<worker, or -> <fence> <number> <taken>` comes behind that.
local function head_of(id, run, work, number, waited)
  local log = mark(id, run.log)
  return id .. ' ' .. run.fence .. ' ' .. number .. ' ' .. (run.limited or '0') .. ' ' .. (run.target or '0') .. ' ' .. waited .. ' ' .. (run.started or NOW)
    .. ' ' .. work .. ' ' .. (log == '' and '-' or log)
end

-- The ending comes last in a log, behind the text, if there is one.
local function end_log(id, followers, ending, text, most)
  if text then
    note_text(id, followers, text, most, 'e' .. ending)
  else
    note(id, followers, 'e' .. ending)
  end
  call('PEXPIRE', key('events', id), LOG_TTL)
end

-- The ending is the last event, for those who follow, and a message to the front door that waits. With `text`, that comes before it.
local function announce(id, run, ending, text, most)
  if run.log then end_log(id, run.followers, ending, text, most) end
  if run.reply_to and not follows(run.followers, run.reply_to) then reply(run.reply_to, ending) end
end
