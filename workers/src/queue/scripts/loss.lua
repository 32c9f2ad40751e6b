-- Since when the queue's memory is lost, if that was within the last minute. `known` is the epoch that the process knew, empty when it knew none: a queue that
-- nobody knew before is new, and has lost nothing. Another epoch than that is a memory that somebody began after the loss. The caller has read both keys.
local function note_loss(known, forgot, epoch)
  forgot = tonumber(forgot)
  if known ~= '' and known ~= epoch and not forgot then
    forgot = now
    call('SET', key('forgot'), NOW, 'PX', MINUTE + 1000)
  end
  return forgot
end
