-- Notes up to which event they were delivered, if the holder has the lease; returns whether it has.
if redis.call('GET', KEYS[1] .. ':delivery:lease') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1] .. ':delivery:token', ARGV[2])
return 1
