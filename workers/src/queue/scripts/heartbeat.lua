-- ARGV: lease, worker, then id and fence of every run. Answers for each: 0 held, 1 held and to be cancelled, 2 lost.
local expiry = now + tonumber(ARGV[1])
local answers = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local state, fence, work, cancel, scope, held, owner = read(id, 'state', 'fence', 'work', 'cancel', 'scope', 'held', 'owner')
  local answer = 2
  if fence == ARGV[i + 1] and (state == 'leased' or state == 'ended') then
    -- A call whose lease ran out has lost its slot with it, so it cannot be renewed; an ending that waits to be recorded can.
    local calling = state == 'leased' and work == 'call'
    local held_until = tonumber(redis.call('ZSCORE', key('lease'), id)) or 0
    if not calling or held_until > now then
      redis.call('ZADD', key('lease'), expiry, id)
      -- Who took an offer is known from here on.
      if calling and not owner then redis.call('HSET', key('run', id), 'owner', ARGV[2]) end
      if calling and has(held, 's') then redis.call('ZADD', key('slots', scope), expiry, id) end
      answer = (cancel and state == 'leased') and 1 or 0
    end
  end
  answers[#answers + 1] = answer
end
return answers
