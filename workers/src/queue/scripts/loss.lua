-- Since when the queue's memory is lost, if that was within the last minute. `epoch` is there unless it is; a queue that nobody knew before is
-- new, and has lost nothing.
local function note_loss(knew)
  local forgot = tonumber(redis.call('GET', key('forgot')))
  if knew and not forgot and redis.call('EXISTS', key('epoch')) == 0 then
    forgot = now
    redis.call('SET', key('forgot'), whole(now), 'PX', MINUTE + 1000)
  end
  return forgot
end
