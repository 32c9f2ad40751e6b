-- Answers {ready and oldest age of every lane…, delayed, leased, bytes, paused}.
local answer = {}
for _, lane in ipairs(LANES) do
  local oldest = call('ZRANGE', key('waiting', lane), 0, 0, 'WITHSCORES')[2]
  answer[#answer + 1] = call('ZCARD', key('waiting', lane))
  answer[#answer + 1] = oldest and math.max(now - tonumber(oldest), 0) or 0
end
answer[#answer + 1] = call('ZCARD', key('delay'))
answer[#answer + 1] = call('ZCARD', key('lease'))
answer[#answer + 1] = math.max(tonumber(call('HGET', key('meta'), 'bytes')) or 0, 0)
answer[#answer + 1] = call('EXISTS', key('paused'))
return answer
