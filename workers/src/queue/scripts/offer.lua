-- Offers: runs that are leased as they come, to whichever idle worker takes them from the list `offers:<scope>` first. Only a scope without limits
-- has room for them, only while none of its runs wait in line, and all scopes together only have so much as the last claim left free.
local rooms, room_left = {}, nil

-- The room of a scope: for how many `runs`, and the `lease` that they get.
local function room_in(scope)
  local room = rooms[scope]
  if not room then
    local runs, all, open, lease = unpack(redis.call('HMGET', key('meta'), 'room:' .. scope, 'room', 'open', 'lease'))
    local is_open = (tonumber(open) or 0) > now
    room = { written = tonumber(runs) or 0, runs = is_open and tonumber(runs) or 0, lease = tonumber(lease) }
    rooms[scope] = room
    room_left = room_left or tonumber(all) or 0
  end
  return room
end

local function has_room(scope)
  return room_in(scope).runs > 0 and room_left > 0
end

-- Takes the room of one run; answers its lease.
local function take_room(scope)
  local room = room_in(scope)
  room.runs, room_left, room.was_taken = room.runs - 1, room_left - 1, true
  return room.lease
end

-- A run of the scope waits in line: no other one is offered past it.
local function shut_room(scope)
  if rooms[scope] and rooms[scope].written == 0 then return end
  rooms[scope] = { written = 0, runs = 0 }
  close_room(scope)
end

local function write_rooms()
  local fields = { 'room', room_left }
  for scope, room in pairs(rooms) do
    if room.was_taken then
      fields[#fields + 1] = 'room:' .. scope
      fields[#fields + 1] = room.runs
    end
  end
  redis.call('HSET', key('meta'), unpack(fields))
end

-- What the list holds of a run.
local function offer(id, fence, next_event, job)
  return id .. ' ' .. fence .. ' ' .. NOW .. ' ' .. next_event .. ' ' .. job
end
