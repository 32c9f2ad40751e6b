-- ARGV: id, fence, the place of the first delta, bytes of text that a log keeps, deltas. Answers 'done', 'elsewhere' or 'unknown'.
local id, first, most = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local state, fence, log, followers, kept = read(id, 'state', 'fence', 'log', 'followers', 'kept')
if not state then return 'unknown' end
if fence ~= ARGV[2] or state ~= 'leased' then return 'elsewhere' end

local length = redis.call('LLEN', key('events', id))
kept = tonumber(kept) or 0
for i = 5, #ARGV do
  -- Those before came with a step whose answer was lost.
  if first + i - 5 > length then
    kept = kept + #ARGV[i]
    local seq = redis.call('RPUSH', key('events', id), kept <= most and 'd' .. ARGV[i] or 'x')
    tell(id, followers, seq, 'd' .. ARGV[i])
  end
end
redis.call('HSET', key('run', id), 'log', 'd', 'kept', whole(kept))
return 'done'
