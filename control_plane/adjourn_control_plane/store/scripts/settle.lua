-- Replaces the answer of a request by one that says more, the first time; returns the answer that its repeats get.
local request, answer = KEYS[1] .. ':request:' .. ARGV[1], ARGV[2]
if redis.call('EXISTS', request) == 1 and redis.call('HSETNX', request, 'settled', 1) == 1 then
  redis.call('HSET', request, 'answer', answer)
end
return redis.call('HGET', request, 'answer')
