-- Notes a sign of life of a worker, if it comes from the stream that speaks for it. A repeat beats twice: no harm.
local key, description, stream = KEYS[1] .. ':' .. ARGV[1], ARGV[2], ARGV[3]
if redis.call('HGET', key, 'stream') ~= stream then
  return 0
end
local time = redis.call('TIME')
redis.call('HSET', key, 'worker', description, 'lost', 0, 'report_time', time[1] .. string.format('%06d', time[2]))
redis.call('HINCRBY', key, 'beat', 1)
return 1
