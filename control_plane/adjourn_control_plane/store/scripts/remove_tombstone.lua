-- Removes a tombstone. If it was there, and its job's objects are to be looked for once more, another is left for later.
local prefix, uid, looks, again = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3] -- milliseconds; empty: never again
local removed
if looks == 0 then
  removed = redis.call('SREM', prefix .. ':tombstones', uid)
else
  removed = redis.call('ZREM', prefix .. ':tombstones:later', looks .. ' ' .. uid)
end
if removed == 1 and again ~= '' then
  local time = redis.call('TIME')
  local due = string.format('%.0f', time[1] * 1000 + time[2] / 1000 + again)
  redis.call('ZADD', prefix .. ':tombstones:later', due, looks + 1 .. ' ' .. uid)
end
