-- Gives the lease on deliveries of events back, if the holder has it.
if redis.call('GET', KEYS[1] .. ':delivery:lease') == ARGV[1] then
  redis.call('DEL', KEYS[1] .. ':delivery:lease')
end
return 1
