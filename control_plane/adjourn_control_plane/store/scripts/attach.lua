-- Makes a stream the one that speaks for a worker. It is connected with its first heartbeat. A repeat does nothing: by
-- then another stream may have taken over. Refused to the agent of another instance while the one that has the name is
-- not lost, or its jobs have not been taken from it.
local prefix = KEYS[1]
local worker, description, session, stream, repeat_memory = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local instance = ARGV[6]
local key = prefix .. ':' .. worker
local known = redis.call('HMGET', key, 'instance', 'lost')
local another = known[1] and known[1] ~= '' and known[1] ~= instance
if another and (known[2] ~= '1' or redis.call('EXISTS', key .. ':jobs') == 1) then
  return 0
end
if not redis.call('SET', prefix .. ':done:' .. stream, 'attached', 'NX', 'EX', repeat_memory) then
  return 1
end
if another and redis.call('EXISTS', prefix .. ':version') == 1 then
  -- What was about to be placed was meant for the GPUs of the other one.
  redis.call('SET', key .. ':allocation', string.format('%.0f', redis.call('INCR', prefix .. ':version')))
end
local time = redis.call('TIME')
redis.call('SADD', prefix .. ':workers', worker)
redis.call('ZREM', prefix .. ':workers:lost', worker)
redis.call('HSET', key, 'worker', description, 'instance', instance, 'session', session, 'stream', stream,
  'connected', 0, 'lost', 0, 'report_time', time[1] .. string.format('%06d', time[2]))
redis.call('HINCRBY', key, 'heartbeat', 1)
return 1
