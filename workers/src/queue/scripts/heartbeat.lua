-- ARGV: lease, worker, then id and fence of every run. Answers for each: 0 held, 1 held and to be cancelled, 2 lost.
local expiry = now + tonumber(ARGV[1])
local ids = {}
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
find_all(ids)

local answers = {}
for i, id in ipairs(ids) do
  local record, run, answer = record_of(id), find(id), 2
  if run and run.fence == ARGV[2 * i + 2] and (run.state == 'leased' or run.state == 'ended') then
    -- A call whose lease ran out has lost its slot with it, so it cannot be renewed; an ending that waits to be recorded can.
    local calling = run.state == 'leased' and run.work == 'call'
    local held_until = tonumber(call('ZSCORE', key('lease'), id)) or 0
    if not calling or held_until > now then
      call('ZADD', key('lease'), expiry, id)
      -- Who took an offer is known from here on.
      if calling and not run.owner then
        run.owner = ARGV[2]
        if type(record) == 'string' and string.byte(record) == OFFERED then
          own_short(id, run, record)
        else
          changed[id] = true
        end
      end
      if calling and has(run.held, 's') then call('ZADD', key('slots', run.scope), expiry, id) end
      answer = (run.cancel and run.state == 'leased') and 1 or 0
    end
  end
  answers[i] = answer
end
commit()
return answers
