-- Takes the lease on deliveries of events, or keeps it; returns how far they are ('': nothing was delivered yet), or
-- nothing if another has it.
local lease, holder, milliseconds = KEYS[1] .. ':delivery:lease', ARGV[1], ARGV[2]
local current = redis.call('GET', lease)
if current and current ~= holder then
  return false
end
redis.call('SET', lease, holder, 'PX', milliseconds)
return redis.call('GET', KEYS[1] .. ':delivery:token') or ''
