-- Notes a sign of life of a worker, if it comes from the stream that speaks for it. A repeat counts twice: no harm.
-- The first one after an attachment or a loss does not make it ready for work yet: what the worker says with it, that
-- it still has a job for example, comes first. Nor does one that is not `ready`: the worker is being listened to.
local prefix, worker, description, stream, ready = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local key = prefix .. ':' .. worker
local known = redis.call('HMGET', key, 'stream', 'lost', 'connected')
if known[1] ~= stream then
  return 0
end
local back = known[2] == '1'
local connected = known[3]
if back then
  connected = '0'
elseif ready then
  connected = '1'
end
local time = redis.call('TIME')
redis.call('HSET', key, 'worker', description, 'lost', 0, 'connected', connected,
  'report_time', time[1] .. string.format('%06d', time[2]))
redis.call('HINCRBY', key, 'heartbeat', 1)
if back then
  redis.call('SADD', prefix .. ':workers', worker)
  redis.call('ZREM', prefix .. ':workers:lost', worker)
elseif connected ~= known[3] then
  redis.call('PUBLISH', prefix .. ':notifications', ' ' .. worker)
end
return 1
