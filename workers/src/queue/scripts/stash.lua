-- ARGV: lease, bytes of a call's text that a log keeps, then of every ending: id, fence, `<tokens used, or -> <state of the ended run>`, ending; and, when text comes
-- before it, which a 't' in front of the tokens says, that text (`after_text`). Answers 'd' (done), or else a letter for each:
-- 'd', 'e' (elsewhere) or 'u' (unknown).
local unknown, ended = {}, 0

-- The same for a short record, which says that nothing but this is to be done.
local function stash_short(id, of, record, ending, text)
  ended = ended + 1
  write_short(id, 'e' .. record)
  write(PREFIX .. 'end:' .. id, ending)
  local reply_to = short_reply_to(record, of)
  if string.byte(record, 2) ~= NOTHING then
    end_log(id, reply_to, ending, text, tonumber(ARGV[2]))
  elseif reply_to then
    reply(reply_to, ending)
  end
  return 'd'
end

local function stash(id, of, what, ending, text)
  local record = short_and_free(id, false, of)
  if record then return stash_short(id, of, record, ending, text) end
  local run = find(id)
  if not run then
    if is_buried(id) then return 'e' end
    -- The queue lost its memory. The ending goes to the ledger, and until it is there nobody should restore the run.
    unknown[#unknown + 1] = id
    return 'u'
  end
  if (run.state == 'ready' or run.state == 'delayed') and (tonumber(run.fence) or 0) < tonumber(of) then
    -- It did lose its memory, and the run was restored. Nobody has taken it since, so this is its ending.
    end_wait(id, run.lane)
    call('ZADD', key('lease'), now + ARGV[1], id)
    run.state, run.fence = 'leased', of
  end
  if run.fence ~= of then return 'e' end
  -- The same step again, because its answer was lost.
  if run.state == 'ended' then return 'd' end
  if run.state ~= 'leased' then return 'e' end

  run.state, ended = 'ended', ended + 1
  write(key('end', id), ending)
  local used, outcome = string.match(what, '^t?(%S+) (%S+)$')
  -- Those that wait behind it want to know when it is finished.
  if run.flight then run.outcome = outcome end
  changed[id] = true
  if run.work == 'call' and used ~= '-' and has(run.held, 't') then settle(run.scope, id, run.fence, tonumber(used)) end
  free_slot(id, run)
  announce(id, run, ending, text, tonumber(ARGV[2]))
  return 'd'
end

-- Where each ending begins, and what text comes before it.
local places, ids, texts, endings, at, last = {}, {}, nil, 0, 3, #ARGV
while at < last do
  endings = endings + 1
  places[endings], ids[endings] = at, ARGV[at]
  if string.byte(ARGV[at + 2]) == 116 then
    texts = texts or {}
    texts[endings], at = at + 4, after_text(at + 4)
  else
    at = at + 4
  end
end
local room = find_all(ids, { key('room') })[1]
-- Mostly they all are done.
local answers = nil
for i = 1, endings do
  local at = places[i]
  local answer = stash(ids[i], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], texts and texts[i])
  if answer ~= 'd' and not answers then answers = string.rep('d', i - 1) end
  if answers then answers = answers .. answer end
end
bury(unknown)
give_room_back(ended, room)
commit()
return answers or 'd'
