-- Makes a stream the one that speaks for a worker. It is connected with its first heartbeat. A repeat does nothing: by
-- then another stream may have taken over.
local prefix = KEYS[1]
local worker, description, session, stream, repeat_memory = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not redis.call('SET', prefix .. ':done:' .. stream, 'attached', 'NX', 'EX', repeat_memory) then
  return 0
end
local time = redis.call('TIME')
local key = prefix .. ':' .. worker
redis.call('SADD', prefix .. ':workers', worker)
redis.call('ZREM', prefix .. ':workers:lost', worker)
redis.call('HSET', key, 'worker', description, 'session', session, 'stream', stream, 'connected', 0, 'lost', 0,
  'report_time', time[1] .. string.format('%06d', time[2]))
redis.call('HINCRBY', key, 'heartbeat', 1)
return 1
