-- Notes that a bundle is removed, unless somebody else has begun to remove it since.
local prefix, bundle, claim = KEYS[1], ARGV[1], tonumber(ARGV[2])
if tonumber(redis.call('ZSCORE', prefix .. ':bundles:removing', bundle) or -1) == claim then
  redis.call('ZREM', prefix .. ':bundles:removing', bundle)
end
