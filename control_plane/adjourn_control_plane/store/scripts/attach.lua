-- Makes a stream the one that speaks for a worker. It is connected with its first heartbeat. A repeat does nothing: by
-- then another stream may have taken over. Refused to the agent of another instance while the one that has the name is
-- not lost, or its jobs have not been taken from it. Refused also if it is out of date: of the same instance a newer one
-- was attached. What it would say is from before.
local prefix = KEYS[1]
local worker, description, session, stream, repeat_memory = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local instance, opened, stream_memory = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local key = prefix .. ':' .. worker
local known = redis.call('HMGET', key, 'instance', 'lost')
local another = known[1] and known[1] ~= '' and known[1] ~= instance
if another and (known[2] ~= '1' or redis.call('EXISTS', key .. ':jobs') == 1) then
  return 0
end
if redis.call('EXISTS', prefix .. ':done:' .. stream) == 1 then
  return 1
end
if opened > 0 and instance ~= '' then
  local newest = prefix .. ':newest:' .. instance
  if opened < tonumber(redis.call('GET', newest) or '0') then
    return 2
  end
  redis.call('SET', newest, ARGV[7], 'EX', stream_memory)
end
redis.call('SET', prefix .. ':done:' .. stream, 'attached', 'EX', repeat_memory)
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
