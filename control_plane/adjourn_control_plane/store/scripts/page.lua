-- The newest jobs below a number, of one or several indexes, as {record, version, number}, at one moment.
local prefix, below, size = KEYS[1], ARGV[1], tonumber(ARGV[2])
local found = {}
for i = 3, #ARGV do
  local index = redis.call('ZREVRANGEBYSCORE', prefix .. ':' .. ARGV[i], below, '-inf', 'WITHSCORES', 'LIMIT', 0, size)
  for j = 1, #index, 2 do
    found[#found + 1] = {job = index[j], number = tonumber(index[j + 1])}
  end
end
table.sort(found, function(one, other) return one.number > other.number end)
local page = {}
for i = 1, math.min(size, #found) do
  page[i] = redis.call('HMGET', prefix .. ':' .. found[i].job, 'record', 'version', 'number')
end
return page
