-- Offers: runs that are leased as they come, to whichever idle worker takes them from the list `offers:<scope>` first. Only a scope without limits
-- has room for them, and only while none of its runs wait in line. There is room for as many as the last claim left executors free, and as have become free
-- since. More may come than that if workers went away: what nobody takes at once waits for a claim.
--
-- `room` is how many more may be offered, `room_until` until when, and `room_lease` how long their leases are. `room:<scope>` is there while no run of the scope
-- waits in line.

-- How many more may be offered; when their leases end, as text; which scopes are open, as far as that is known.
local room_left, expiry, is_open

-- Reads the records of runs that come, and what room there is in their scopes. Answers the names of the records, and how many others stand before them.
local function find_with_room(ids, scopes)
  local names = { key('room'), key('room_until'), key('room_lease') }
  is_open = {}
  for i = 1, #scopes do
    local scope = scopes[i]
    if is_open[scope] == nil then
      is_open[scope] = #names + 1
      names[#names + 1] = key('room', scope)
    end
  end
  local others = #names
  local values = find_all(ids, names)
  for scope, at in pairs(is_open) do is_open[scope] = values[at] == '1' end
  local left, open, lease = values[1], values[2], values[3]
  room_left = 0
  if left and open and lease and exceeds(open, NOW) then
    room_left, expiry = tonumber(left), whole(now + lease)
  end
  return names, others
end

local function has_room(scope)
  return room_left > 0 and is_open[scope]
end

-- Runs have ended, and as many executors are about to be free. `room` is what there was.
local function give_room_back(runs, room)
  if runs > 0 and room then write(key('room'), whole(room + runs)) end
end

-- A run of the scope waits in line: no other one is offered past it.
local function shut_room(scope)
  if is_open[scope] == false then return end
  is_open[scope] = false
  close_room(scope)
end

-- The list holds two entries of a run, this one and its job. They come and go together.
local function offer(id, fence, next_event)
  return id .. ' ' .. fence .. ' ' .. NOW .. ' ' .. next_event
end
