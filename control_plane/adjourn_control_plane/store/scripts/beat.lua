-- Notes a sign of life of a worker, if it comes from the stream that speaks for it. A repeat beats twice: no harm.
local prefix, worker, description, stream = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local key = prefix .. ':' .. worker
local known = redis.call('HMGET', key, 'stream', 'lost')
if known[1] ~= stream then
  return 0
end
local time = redis.call('TIME')
redis.call('HSET', key, 'worker', description, 'lost', 0, 'report_time', time[1] .. string.format('%06d', time[2]))
redis.call('HINCRBY', key, 'beat', 1)
if known[2] == '1' then
  redis.call('SADD', prefix .. ':workers', worker)
  redis.call('ZREM', prefix .. ':workers:lost', worker)
  redis.call('PUBLISH', prefix .. ':hints', ' ' .. worker)
end
return 1
