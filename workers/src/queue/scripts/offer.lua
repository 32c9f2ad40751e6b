-- Offers: runs that are leased as they come, to whichever idle worker takes them from the list `offers:<scope>` first. Only a scope without limits
-- has room for them, and only while none of its runs wait in line. There is room for as many as the last claim left executors free, and as have become free
-- since. More may come than that if workers went away: what nobody takes at once waits for a claim.
local rooms, room_left

local function begin_offers()
  rooms, room_left = {}, nil
end

-- Whether the scope `is_open`; whether it `was_open` once and has not been shut since, though that may be over; and when the leases of its runs end, as text.
local function room_in(scope)
  local room = rooms[scope]
  if not room then
    local mark, left, open, lease = unpack(call('HMGET', key('meta'), 'room:' .. scope, 'room', 'open', 'lease'))
    room = { was_open = mark == '1', is_open = mark == '1' and (tonumber(open) or 0) > now, expiry = whole(now + (tonumber(lease) or 0)) }
    rooms[scope] = room
    room_left = room_left or tonumber(left) or 0
  end
  return room
end

local function has_room(scope)
  return room_in(scope).is_open and room_left > 0
end

-- Takes the room of one run; answers when its lease ends.
local function take_room(scope)
  room_left = room_left - 1
  return room_in(scope).expiry
end

local function write_room()
  call('HSET', key('meta'), 'room', room_left)
end

-- Runs have ended, and as many executors are about to be free.
local function give_room_back(runs)
  if runs > 0 then call('HINCRBY', key('meta'), 'room', runs) end
end

-- A run of the scope waits in line: no other one is offered past it.
local function shut_room(scope)
  if rooms[scope] and not rooms[scope].was_open then return end
  rooms[scope] = { was_open = false, is_open = false }
  close_room(scope)
end

-- The list holds two entries of a run, this one and its job. They come and go together.
local function offer(id, fence, next_event)
  return id .. ' ' .. fence .. ' ' .. NOW .. ' ' .. next_event
end
