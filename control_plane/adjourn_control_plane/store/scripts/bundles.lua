-- The bundles that are to be removed and those that are being removed, each with its stamp.
local prefix = KEYS[1]
return {
  redis.call('ZRANGE', prefix .. ':bundles:doomed', 0, -1, 'WITHSCORES'),
  redis.call('ZRANGE', prefix .. ':bundles:removing', 0, -1, 'WITHSCORES'),
}
