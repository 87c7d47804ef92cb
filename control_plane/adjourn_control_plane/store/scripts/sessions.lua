-- Fields of workers: how many fields, the fields, the workers.
local prefix, count = KEYS[1], tonumber(ARGV[1])
local rows = {}
for i = count + 2, #ARGV do
  rows[#rows + 1] = redis.call('HMGET', prefix .. ':' .. ARGV[i], unpack(ARGV, 2, count + 1))
end
return rows
