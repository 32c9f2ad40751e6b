-- ARGV: bytes of text that a log keeps, then of every run: id, fence, the place of the first delta, how many deltas, deltas. Answers for each: 'done',
-- 'elsewhere' or 'unknown'.
local most = tonumber(ARGV[1])

local function append(id, of, text)
  local state, fence, log, followers, kept = read(id, 'state', 'fence', 'log', 'followers', 'kept')
  if not state then return is_buried(id) and 'elsewhere' or 'unknown' end
  if fence ~= of or state ~= 'leased' then return 'elsewhere' end
  kept = note_text(id, followers, text or {}, kept, most)
  redis.call('HSET', key('run', id), 'log', 'd', 'kept', whole(kept))
  return 'done'
end

local answers, at = {}, 2
while at < #ARGV do
  local text, after = text_at(at + 2)
  answers[#answers + 1] = append(ARGV[at], ARGV[at + 1], text)
  at = after
end
tell_all()
return answers
