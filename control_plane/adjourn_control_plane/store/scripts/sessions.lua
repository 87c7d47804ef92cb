-- The named fields of every worker.
local prefix = KEYS[1]
local rows = {}
for i, worker in ipairs(redis.call('SMEMBERS', prefix .. ':workers')) do
  rows[i] = redis.call('HMGET', prefix .. ':' .. worker, unpack(ARGV))
end
return rows
