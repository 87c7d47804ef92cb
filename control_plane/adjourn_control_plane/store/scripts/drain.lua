-- Keeps the order to drain a worker, or removes it; tells whether the worker is known. The first order stays.
local prefix, worker, order = KEYS[1], ARGV[1], ARGV[2]
local key = prefix .. ':' .. worker
if redis.call('EXISTS', key) == 0 then
  return 0
end
if order == '' then
  redis.call('HDEL', key, 'drain')
else
  redis.call('HSETNX', key, 'drain', order)
end
redis.call('PUBLISH', prefix .. ':notifications', ' ' .. worker)
return 1
