-- Some events of a job. Their sequences run from 1 without gaps, so a sequence is a place in the list, less what was
-- trimmed at its beginning.
local key, after, size = KEYS[1] .. ':' .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local first = math.max(after - tonumber(redis.call('HGET', key, 'events_trimmed') or '0'), 0)
return redis.call('LRANGE', key .. ':events', first, first + size - 1)
