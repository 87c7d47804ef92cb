-- Marks a worker lost if its last heartbeat is still the one that was read; tells whether it is lost now.
local prefix, worker, heartbeat = KEYS[1], ARGV[1], ARGV[2]
local key = prefix .. ':' .. worker
local known = redis.call('HMGET', key, 'heartbeat', 'lost')
if known[2] == '1' then
  return 1
end
if known[1] ~= heartbeat then
  return 0
end
local time = redis.call('TIME')
redis.call('HSET', key, 'lost', 1)
redis.call('SREM', prefix .. ':workers', worker)
redis.call('ZADD', prefix .. ':workers:lost', math.floor(time[1] * 1000 + time[2] / 1000), worker)
return 1
