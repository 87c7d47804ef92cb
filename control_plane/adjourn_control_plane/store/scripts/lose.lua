-- Marks a worker lost if its last beat is still the one that was read; tells whether it is lost now.
local key, beat = KEYS[1] .. ':' .. ARGV[1], ARGV[2]
local known = redis.call('HMGET', key, 'beat', 'lost')
if known[1] == beat then
  redis.call('HSET', key, 'lost', 1)
  return 1
end
return known[2] == '1' and 1 or 0
