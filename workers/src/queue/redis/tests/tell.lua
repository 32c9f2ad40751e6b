-- ARGV: a front door, then what it is to be told, as `message.rs` has it; what comes after a 'seq' is a number.
local parts = news_for(ARGV[1])
for at = 2, #ARGV do parts[#parts + 1] = ARGV[at - 1] == 'seq' and tonumber(ARGV[at]) or ARGV[at] end
commit()
return 1
