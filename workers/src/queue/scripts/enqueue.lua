-- ARGV: the run as `put` takes it, then the admission, if there is one.
local id, log, reply_to = ARGV[1], ARGV[PUT_ARGS - 2], ARGV[PUT_ARGS - 1]

local state = read(id, 'state')
if state then
  -- Known already: sent twice, or restored from the ledger in the meantime. Then only the reply address may be new.
  if reply_to ~= '' and state ~= 'done' and redis.call('HSETNX', key('run', id), 'reply_to', reply_to) == 1 then
    if log ~= '' then follow(id, read(id, 'followers'), reply_to) end
    local ending = state == 'ended' and redis.call('GET', key('end', id))
    if ending then reply(reply_to, ending) end
  end
end

local answer = { 'yes' }
if #ARGV > PUT_ARGS then
  answer = admit(PUT_ARGS + 1, #ARGV[PUT_ARGS], state)
end
if answer[1] == 'yes' and not state then put(1, '') end
return answer
