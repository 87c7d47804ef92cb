-- Adds to the samples and step metrics of a job, from the stream that speaks for its worker, and thins what is old.
local prefix, job, uid, worker, stream = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local newest, older = tonumber(ARGV[5]), tonumber(ARGV[6])
local next_item = 9

local function key(name)
  return prefix .. ':' .. name
end

-- Of as many equal intervals, the last entry in each is kept: adjourn.series.thinned.
local function thin(series)
  if redis.call('ZCARD', series) <= newest + older then
    return
  end
  local old = redis.call('ZRANGE', series, 0, -newest - 1, 'WITHSCORES')
  local count = math.max(math.floor(older / 2), 1)
  local first = tonumber(old[2])
  local span = tonumber(old[#old]) - first
  local function interval(place)
    return span > 0 and math.min(math.floor((tonumber(old[place]) - first) * count / span), count - 1) or 0
  end
  for place = 2, #old - 2, 2 do
    if interval(place) == interval(place + 2) then
      redis.call('ZREM', series, old[place - 1])
    end
  end
end

local function add(series, count, replace)
  for index = 1, count do
    local at = ARGV[next_item]
    if replace and index == 1 then
      redis.call('ZREMRANGEBYSCORE', series, at, '+inf')
    else
      redis.call('ZREMRANGEBYSCORE', series, at, at)
    end
    redis.call('ZADD', series, at, ARGV[next_item + 1])
    next_item = next_item + 2
  end
  if count > 0 then
    thin(series)
  end
end

if redis.call('HGET', key(worker), 'stream') ~= stream or redis.call('HGET', key(job), 'uid') ~= uid then
  return 0
end
add(key(job .. ':samples'), tonumber(ARGV[7]), false)
add(key(job .. ':steps'), tonumber(ARGV[8]), true)
return 1
