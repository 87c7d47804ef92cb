-- The workers that hold jobs and are lost. Asks those that hold jobs: there may be many more that are lost.
local prefix = KEYS[1]
local found = {}
for _, worker in ipairs(redis.call('SMEMBERS', prefix .. ':workers:holding')) do
  if redis.call('HGET', prefix .. ':' .. worker, 'lost') == '1' then
    found[#found + 1] = worker
  end
end
return found
