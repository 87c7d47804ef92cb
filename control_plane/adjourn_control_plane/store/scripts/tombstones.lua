-- The tombstones that are due, as `{looks} {uid}`: all new ones, and some of those that are to be looked at again.
local prefix, size, longest = KEYS[1], ARGV[1], tonumber(ARGV[2]) -- milliseconds
local found = {}
for _, uid in ipairs(redis.call('SMEMBERS', prefix .. ':tombstones')) do
  found[#found + 1] = '0 ' .. uid
end
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local latest = string.format('%.0f', now + longest)
for _, later in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':tombstones:later', '(' .. latest, '+inf')) do
  redis.call('ZADD', prefix .. ':tombstones:later', latest, later) -- the clock was set back
end
for _, due in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':tombstones:later', '-inf', string.format('%.0f', now),
  'LIMIT', 0, size)) do
  found[#found + 1] = due
end
return found
