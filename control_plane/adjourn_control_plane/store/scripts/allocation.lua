-- The version of a worker's allocation, its jobs, and those with an attempt that it has not said is gone, as
-- {record, version, number}, at one moment.
local prefix, worker = KEYS[1], ARGV[1]

local function read(set)
  local jobs = {}
  for i, job in ipairs(redis.call('SMEMBERS', prefix .. ':' .. worker .. set)) do
    jobs[i] = redis.call('HMGET', prefix .. ':' .. job, 'record', 'version', 'number')
  end
  return jobs
end

return {redis.call('GET', prefix .. ':' .. worker .. ':allocation') or '0', read(':jobs'), read(':unconfirmed')}
