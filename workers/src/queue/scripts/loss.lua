-- Since when the queue's memory is lost, if that was within the last minute. `epoch` is there unless it is; a queue that nobody knew before is
-- new, and has lost nothing. The caller has read both keys.
local function note_loss(knew, forgot, epoch)
  forgot = tonumber(forgot)
  if knew and not forgot and not epoch then
    forgot = now
    call('SET', key('forgot'), NOW, 'PX', MINUTE + 1000)
  end
  return forgot
end
