-- Forgets a worker that is lost and holds no job; tells whether it is unknown now.
local prefix, worker = KEYS[1], ARGV[1]
local key = prefix .. ':' .. worker
local lost = redis.call('HGET', key, 'lost')
if lost == '0' or redis.call('EXISTS', key .. ':jobs') == 1 then
  return 0
end
redis.call('DEL', key, key .. ':allocation')
redis.call('ZREM', prefix .. ':workers:lost', worker)
return 1
