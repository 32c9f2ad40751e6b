-- Offers: runs that are leased as they come, to whichever idle worker takes them from the list `offers:<scope>` first. Only a scope without limits
-- has room for them, and only while none of its runs wait in line. There is room for as many as the last claim left executors free, and as have become free
-- since. More may come than that if workers went away: what nobody takes at once waits for a claim.
--
-- `room` is how many more may be offered, and `room_until` until when. `room:<scope>` is there while no run of the scope waits in line, and says how long the leases of
-- its offers are.

-- How many more may be offered; when the leases of a scope's offers end, as text, false when it is not open, as far as that is known.
local room_left, open

-- Reads the records of runs that come, and what room there is in their scopes.
local function find_with_room(ids, scopes)
  local names = { key('room'), key('room_until') }
  open = {}
  for i = 1, #scopes do
    local scope = scopes[i]
    if not open[scope] then
      open[scope] = #names + 1
      names[open[scope]] = key('room', scope)
    end
  end
  local values = find_all(ids, names)
  for scope, at in pairs(open) do open[scope] = values[at] and whole(now + values[at]) end
  local left, until_when = values[1], values[2]
  room_left = left and until_when and exceeds(until_when, NOW) and tonumber(left) or 0
end

local function has_room(scope)
  return room_left > 0 and open[scope]
end

-- Runs have ended, and as many executors are about to be free. `room` is what there was.
local function give_room_back(runs, room)
  if runs > 0 and room then write(key('room'), whole(room + runs)) end
end

-- A run of the scope waits in line: no other one is offered past it.
local function shut_room(scope)
  if open[scope] == false then return end
  open[scope] = false
  close_room(scope)
end

-- The list holds two entries of a run, this one and its job. They come and go together.
local function offer(id, fence, next_event)
  return id .. ' ' .. fence .. ' ' .. NOW .. ' ' .. next_event
end
