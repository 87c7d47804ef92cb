-- Forgets workers that have been lost for some milliseconds and hold no job; returns them.
local prefix, age, size = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local before = string.format('%.0f', time[1] * 1000 + time[2] / 1000 - age)
local found = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':workers:lost', '-inf', before, 'LIMIT', 0, size)) do
  local key = prefix .. ':' .. worker
  if redis.call('EXISTS', key .. ':jobs') == 0 then
    redis.call('DEL', key, key .. ':allocation')
    redis.call('ZREM', prefix .. ':workers:lost', worker)
    found[#found + 1] = worker
  end
end
return found
