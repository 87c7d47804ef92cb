-- The version of a worker's allocation and its jobs, as {record, version, number}, at one moment.
local prefix, worker = KEYS[1], ARGV[1]
local jobs = {}
for i, job in ipairs(redis.call('SMEMBERS', prefix .. ':' .. worker .. ':jobs')) do
  jobs[i] = redis.call('HMGET', prefix .. ':' .. job, 'record', 'version', 'number')
end
return {redis.call('GET', prefix .. ':' .. worker .. ':allocation') or '0', jobs}
