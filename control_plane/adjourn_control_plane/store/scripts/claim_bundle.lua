-- Begins to remove a bundle that has this stamp still, and gives it another, which is returned; false: it has not.
local prefix = KEYS[1]
local bundle, stamp, id, repeat_memory = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local done = redis.call('GET', prefix .. ':done:' .. id)
if done then
  return tonumber(done)
end
local doomed, removing = prefix .. ':bundles:doomed', prefix .. ':bundles:removing'
local marked = redis.call('ZSCORE', doomed, bundle) or redis.call('ZSCORE', removing, bundle)
if tonumber(marked or -1) ~= stamp then
  return false
end
local claim = redis.call('INCR', prefix .. ':bundles:steps')
redis.call('ZREM', doomed, bundle)
redis.call('ZADD', removing, claim, bundle)
redis.call('SET', prefix .. ':done:' .. id, claim, 'EX', repeat_memory)
return claim
