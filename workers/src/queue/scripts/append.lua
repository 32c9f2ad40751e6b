-- ARGV: bytes of text that a log keeps, then of every run: id, fence, the place of the first delta, how many deltas, deltas. Answers a letter for each, as `stash`
-- does.
local most = tonumber(ARGV[1])

local function append(id, of, text)
  local run = find(id)
  if not run then return is_buried(id) and 'e' or 'u' end
  if run.fence ~= of or run.state ~= 'leased' then return 'e' end
  run.log, run.kept = 'd', whole(note_text(id, run.followers, text or {}, run.kept, most))
  changed[id] = true
  return 'd'
end

local texts, ids, at = {}, {}, 2
while at < #ARGV do
  local text, after = text_at(at + 2)
  texts[#texts + 1] = { id = ARGV[at], fence = ARGV[at + 1], text = text }
  ids[#ids + 1] = ARGV[at]
  at = after
end
find_all(ids)
local answers = {}
for i, new in ipairs(texts) do answers[i] = append(new.id, new.fence, new.text) end
commit()
return table.concat(answers)
