-- ARGV: the run as `put` takes it, then the admission, if there is one.
local id, scope, flight, log, reply_to, job = ARGV[1], ARGV[4], ARGV[PUT_ARGS - 3], ARGV[PUT_ARGS - 2], ARGV[PUT_ARGS - 1], ARGV[PUT_ARGS]

-- Offers travel whole, and those of one read together.
local OFFERED_BYTES = 256 * 1024

local state = read(id, 'state')
if state then
  -- Known already: sent twice, or restored from the ledger in the meantime. Then only the reply address may be new.
  if reply_to ~= '' and state ~= 'done' and redis.call('HSETNX', key('run', id), 'reply_to', reply_to) == 1 then
    if log ~= '' then follow(id, read(id, 'followers'), reply_to) end
    local ending = state == 'ended' and redis.call('GET', key('end', id))
    if ending then reply(reply_to, ending) end
  end
end

local waiting, room
if not state then
  waiting, room = look_for_room(scope)
  -- Runs that share a call stand where the others of their flight find them, and no call is made for one that is over.
  if flight ~= '' or #job > OFFERED_BYTES or tonumber(ARGV[6]) <= now then room = nil end
end
local answer = { 'yes' }
if #ARGV > PUT_ARGS then
  answer = admit(PUT_ARGS + 1, #job, state, not room and waiting or nil)
end
if answer[1] == 'yes' and not state then put(1, '', room) end
return answer
