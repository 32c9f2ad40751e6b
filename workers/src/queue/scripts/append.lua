-- ARGV: bytes of a call's text that a log keeps, then of every run: id, fence, text (`after_text`). Answers a letter for each, as `stash` does.
local most = tonumber(ARGV[1])

-- The same for a short record, which changes with the first text only.
local function append_short(id, of, record, text)
  if string.byte(record, 2) == LOGGED then write_short(id, string.sub(record, 1, 1) .. 'd' .. string.sub(record, 3)) end
  note_text(id, short_reply_to(record, of), text, most)
  return 'd'
end

local function append(id, of, text)
  local record = short(id, false, of)
  if record and string.byte(record, 2) ~= NOTHING then return append_short(id, of, record, text) end
  local run = find(id)
  if not run then return is_buried(id) and 'e' or 'u' end
  if run.fence ~= of or run.state ~= 'leased' then return 'e' end
  if run.log ~= 'd' then run.log, changed[id] = 'd', true end
  note_text(id, run.followers, text, most)
  return 'd'
end

local places, ids, at = {}, {}, 2
while at < #ARGV do
  local i = #ids + 1
  places[i], ids[i], at = at, ARGV[at], after_text(at + 2)
end
find_all(ids)
local answers = {}
for i, id in ipairs(ids) do answers[i] = append(id, ARGV[places[i] + 1], places[i] + 2) end
commit()
return table.concat(answers)
