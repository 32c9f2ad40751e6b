-- ARGV: how many keys the step writes in its end, and what it fails with before that (or empty).
for number = 1, tonumber(ARGV[1]) do write(key('written', whole(number)), '1') end
if ARGV[2] ~= '' then error(ARGV[2]) end
commit()
return 1
