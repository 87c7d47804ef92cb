-- Notes that a worker's stream ended, unless another has taken over.
local key, stream = KEYS[1] .. ':' .. ARGV[1], ARGV[2]
if redis.call('HGET', key, 'stream') == stream then
  redis.call('HSET', key, 'connected', 0)
end
return 1
