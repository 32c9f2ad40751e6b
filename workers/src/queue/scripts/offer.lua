-- Offers: runs that are leased as they come, to whichever idle worker takes them from the list `offers:<scope>` first. Only a scope without limits
-- has room for them, only while none of its runs wait in line, and only so much as the last claim left free.
local rooms = {}

-- The room of a scope: how many `runs`, and the `lease` that they get.
local function room_in(scope)
  if not rooms[scope] then
    local room, open, lease = unpack(redis.call('HMGET', key('meta'), 'room:' .. scope, 'open', 'lease'))
    local is_open = (tonumber(open) or 0) > now
    rooms[scope] = { runs = is_open and tonumber(room) or 0, lease = tonumber(lease) }
  end
  return rooms[scope]
end

-- What the list holds of a run.
local function offer(id, fence, log, job)
  return table.concat({ id, fence, NOW, mark(id, log), job }, ' ')
end
