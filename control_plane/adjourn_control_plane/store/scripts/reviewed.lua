-- Takes a job from those whose checkpoints are to be looked at, unless a later version has asked for it since.
local set = KEYS[1] .. ':retention'
local job, version = ARGV[1], ARGV[2]

local asked = redis.call('ZSCORE', set, job)
if asked and tonumber(asked) <= tonumber(version) then
  redis.call('ZREM', set, job)
end
