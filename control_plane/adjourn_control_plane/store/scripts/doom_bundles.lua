-- Marks bundles as to be removed, all with one stamp; those that are marked keep theirs.
local prefix = KEYS[1]
local stamp = redis.call('INCR', prefix .. ':bundles:steps')
for _, bundle in ipairs(ARGV) do
  if not redis.call('ZSCORE', prefix .. ':bundles:removing', bundle) then
    redis.call('ZADD', prefix .. ':bundles:doomed', 'NX', stamp, bundle)
  end
end
