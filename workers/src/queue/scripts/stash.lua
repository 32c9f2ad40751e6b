-- ARGV: id, fence, tokens used (or empty), ending. Answers 'done', 'elsewhere' or 'unknown'.
local id, used, ending = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local state, fence, scope, reply_to, work = read(id, 'state', 'fence', 'scope', 'reply_to', 'work')
if not state then return 'unknown' end
if fence ~= ARGV[2] then return 'elsewhere' end
-- The same step again, because its answer was lost.
if state == 'ended' then return 'done' end
if state ~= 'leased' then return 'elsewhere' end

redis.call('SET', key('end', id), ending)
redis.call('HSET', key('run', id), 'state', 'ended')
if work == 'call' and used then settle(scope, id, fence, used) end
free_slot(id, scope)
reply(reply_to, ending)
return 'done'
