-- Takes a bundle off those that are to be removed. Returns how many steps of removals there have been; false: it is being
-- removed right now.
local prefix, bundle = KEYS[1], ARGV[1]
if redis.call('ZSCORE', prefix .. ':bundles:removing', bundle) then
  return false
end
redis.call('ZREM', prefix .. ':bundles:doomed', bundle)
return tonumber(redis.call('GET', prefix .. ':bundles:steps') or 0)
