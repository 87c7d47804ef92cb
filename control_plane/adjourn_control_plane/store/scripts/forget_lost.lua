-- Forgets workers that have been lost for some milliseconds, hold no job and left none unconfirmed; returns them.
local prefix, age, size = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + time[2] / 1000)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':workers:lost', '(' .. now, '+inf')) do
  redis.call('ZADD', prefix .. ':workers:lost', now, worker) -- the clock was set back: count from now
end
local before = string.format('%.0f', time[1] * 1000 + time[2] / 1000 - age)
local found, kept = {}, 0 -- those that are kept must not stand in the way of others
while #found < size do
  local old = redis.call('ZRANGEBYSCORE', prefix .. ':workers:lost', '-inf', before, 'LIMIT', kept, size - #found)
  if #old == 0 then
    break
  end
  for _, worker in ipairs(old) do
    local key = prefix .. ':' .. worker
    if redis.call('EXISTS', key .. ':jobs', key .. ':unconfirmed_releases') == 0 then
      redis.call('DEL', key, key .. ':allocation')
      redis.call('ZREM', prefix .. ':workers:lost', worker)
      found[#found + 1] = worker
    else
      kept = kept + 1
    end
  end
end
return found
