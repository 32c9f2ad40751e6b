-- Offers: runs that are leased as they come, to whichever idle worker takes them from the list `offers:<scope>` first. Only a scope without limits
-- has room for them, only while none of its runs wait in line, and only so much as the last claim left free.

-- How many bytes waiting jobs have, and the lease of a run for which there is room.
local function look_for_room(scope)
  local bytes, room, open, lease = unpack(redis.call('HMGET', key('meta'), 'bytes', 'room:' .. scope, 'open', 'lease'))
  local is_open = (tonumber(room) or 0) > 0 and (tonumber(open) or 0) > now
  return tonumber(bytes) or 0, is_open and tonumber(lease) or nil
end

local function offer(id, scope, fence, log, job)
  redis.call('HINCRBY', key('meta'), 'room:' .. scope, -1)
  redis.call('RPUSH', key('offers', scope), table.concat({ id, fence, NOW, mark(id, log), job }, ' '))
end
