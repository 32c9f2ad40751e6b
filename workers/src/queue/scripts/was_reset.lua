-- ARGV: a new epoch, '1' when this process knew an earlier one. Answers 1 when the queue had lost its memory, or is new.
note_loss(ARGV[2] == '1')
return redis.call('SET', key('epoch'), ARGV[1], 'NX') and 1 or 0
