-- One change of one job: all of it, or nothing. Every check stands before the first write, because what a script has
-- written stays written when it fails later. All keys of a namespace live in one slot (its hash tag), so the script
-- may name those that it only finds out about.
local prefix = KEYS[1]
local id, job, expected, record = ARGV[1], ARGV[2], ARGV[3], ARGV[4] -- an empty record deletes the job
local state, worker, released = ARGV[5], ARGV[6], ARGV[7]
local guarded, allocation = ARGV[8], ARGV[9]
local request, digest, answer, request_memory = ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local repeat_memory, changes_kept = ARGV[14], ARGV[15]
local events, epochs, checkpoints = tonumber(ARGV[16]), tonumber(ARGV[17]), tonumber(ARGV[18])
local uid, fenced, stream, labels = ARGV[19], ARGV[20], ARGV[21], ARGV[22]
local events_kept, doubted = tonumber(ARGV[23]), tonumber(ARGV[24]) -- workers with unconfirmed attempts
local deleted_kept, requests_kept = tonumber(ARGV[25]), tonumber(ARGV[26])
local heartbeat = ARGV[27] -- of the fenced worker; empty: it does not matter
local steps = ARGV[28] -- of removals of bundles, as the job's was wanted; empty: it needs none
local retired, review = tonumber(ARGV[29]), ARGV[30]
local next_item = 31

local function key(name)
  return prefix .. ':' .. name
end

local function item()
  next_item = next_item + 1
  return ARGV[next_item - 1]
end

local done = redis.call('GET', key('done:' .. id))
if done then
  return {'DONE', done}
end
if request ~= '' then
  local seen = redis.call('HMGET', key('request:' .. request), 'digest', 'answer')
  if seen[1] then
    return {'SEEN', seen[1], seen[2]}
  end
end
if fenced ~= '' and redis.call('HGET', key(fenced), 'stream') ~= stream then
  return {'FENCED', 'stream ' .. stream .. ' no longer speaks for ' .. fenced}
end
if heartbeat ~= '' and redis.call('HGET', key(fenced), 'heartbeat') ~= heartbeat then
  return {'FENCED', fenced .. ' has spoken since heartbeat ' .. heartbeat}
end
local old = redis.call('HMGET', key(job), 'version', 'number', 'state', 'worker', 'released', 'uid', 'labels',
  'unconfirmed')
local old_state, old_worker, old_released = old[3] or '', old[4] or '', old[5] or '0'
local old_unconfirmed = old[8] or ''
if (old[1] or '0') ~= expected then
  return {'CONFLICT', job .. ' has version ' .. (old[1] or '0') .. ', not ' .. expected}
end
if guarded ~= '' then
  local current = redis.call('GET', key(guarded .. ':allocation')) or '0'
  if current ~= allocation then
    return {'CONFLICT', 'allocation of ' .. guarded .. ' has version ' .. current .. ', not ' .. allocation}
  end
end
if steps ~= '' then
  local current = redis.call('GET', key('bundles:steps')) or '0'
  if current ~= steps then
    return {'BUNDLE', 'bundles were removed since step ' .. steps .. ' of ' .. current}
  end
end

-- One counter gives versions and, to new jobs, their number.
local version = string.format('%.0f', redis.call('INCR', key('version')))
local number = old[2] or version

if old_state ~= state then
  if old_state ~= '' then
    redis.call('ZREM', key('state:' .. old_state), job)
  end
  if state ~= '' then
    redis.call('ZADD', key('state:' .. state), number, job)
  end
end
local touched = '' -- workers whose allocation this changes
if old_worker ~= worker then
  if old_worker ~= '' then
    redis.call('SREM', key(old_worker .. ':jobs'), job)
    if redis.call('EXISTS', key(old_worker .. ':jobs')) == 0 then
      redis.call('SREM', key('workers:holding'), old_worker)
    end
  end
  if worker ~= '' then
    redis.call('SADD', key(worker .. ':jobs'), job)
    redis.call('SADD', key('workers:holding'), worker)
  end
  touched = old_worker .. ' ' .. worker
elseif old_released ~= released then
  touched = worker
end
local unconfirmed = ''
for _ = 1, doubted do
  local name, attempts = item(), item()
  unconfirmed = unconfirmed .. ' ' .. name
  if redis.call('HGET', key(name .. ':unconfirmed_releases'), job) ~= attempts then
    redis.call('HSET', key(name .. ':unconfirmed_releases'), job, attempts)
    touched = touched .. ' ' .. name
  end
end
for name in string.gmatch(old_unconfirmed, '%S+') do
  if not string.find(unconfirmed .. ' ', ' ' .. name .. ' ', 1, true) then
    redis.call('HDEL', key(name .. ':unconfirmed_releases'), job)
    touched = touched .. ' ' .. name
  end
end
for name in string.gmatch(touched, '%S+') do
  redis.call('SET', key(name .. ':allocation'), version)
end

if record == '' then
  redis.call('DEL', key(job), key(job .. ':events'), key(job .. ':epochs'), key(job .. ':checkpoints'),
    key(job .. ':registered'), key(job .. ':retired'), key(job .. ':samples'), key(job .. ':steps'))
  redis.call('ZREM', key('retention'), job)
  redis.call('ZREM', key('jobs'), job)
  redis.call('SADD', key('tombstones'), old[6])
  local newest = redis.call('ZREVRANGE', key('deleted'), 0, 0, 'WITHSCORES')[2] or 0
  redis.call('ZADD', key('deleted'), string.format('%.0f', newest + 1), old[6])
  redis.call('ZREMRANGEBYRANK', key('deleted'), 0, -deleted_kept - 1)
else
  redis.call('HSET', key(job), 'record', record, 'version', version, 'number', number, 'state', state,
    'worker', worker, 'released', released, 'uid', uid, 'labels', labels, 'unconfirmed', unconfirmed)
  redis.call('ZADD', key('jobs'), number, job)
  for _ = 1, events do
    local event = item()
    redis.call('RPUSH', key(job .. ':events'), event)
    redis.call('XADD', key('events'), 'MAXLEN', '~', changes_kept, '*', 'number', redis.call('INCR', key('events:number')),
      'job', job, 'uid', uid, 'labels', labels, 'event', event)
  end
  if events > 0 then
    local excess = redis.call('LLEN', key(job .. ':events')) - events_kept
    if excess > 0 then
      redis.call('LTRIM', key(job .. ':events'), excess, -1)
      redis.call('HINCRBY', key(job), 'events_trimmed', excess)
    end
  end
  for _ = 1, epochs do
    local epoch, metrics = item(), item()
    redis.call('ZREMRANGEBYSCORE', key(job .. ':epochs'), epoch, epoch)
    redis.call('ZADD', key(job .. ':epochs'), epoch, metrics)
  end
  for _ = 1, checkpoints do
    local name, checkpoint = item(), item()
    redis.call('HSET', key(job .. ':checkpoints'), name, checkpoint)
    if not redis.call('ZSCORE', key(job .. ':registered'), name) then
      redis.call('ZADD', key(job .. ':registered'), redis.call('HINCRBY', key(job), 'registered', 1), name)
      review = '1'
    end
  end
  for _ = 1, retired do
    local name = item()
    local checkpoint = redis.call('HGET', key(job .. ':checkpoints'), name)
    if checkpoint then
      redis.call('HSET', key(job .. ':retired'), name, checkpoint)
      redis.call('HDEL', key(job .. ':checkpoints'), name)
      redis.call('ZREM', key(job .. ':registered'), name)
    end
  end
  if review == '1' then
    redis.call('ZADD', key('retention'), version, job)
  end
end

local result = record == '' and '0' or version
redis.call('SET', key('done:' .. id), result, 'EX', repeat_memory)
if request ~= '' then
  redis.call('HSET', key('request:' .. request), 'digest', digest, 'answer', answer)
  redis.call('EXPIRE', key('request:' .. request), request_memory)
  redis.call('ZADD', key('requests'), version, request)
  local excess = redis.call('ZCARD', key('requests')) - requests_kept
  if excess > 0 then
    local oldest = redis.call('ZPOPMIN', key('requests'), excess)
    for index = 1, #oldest, 2 do
      redis.call('DEL', key('request:' .. oldest[index]))
    end
  end
end
redis.call('XADD', key('changes'), 'MAXLEN', '~', changes_kept, '*', 'job', job, 'version', version, 'state', state,
  'workers', touched, 'labels', labels ~= old[7] and old[7] or '')
if old_worker ~= '' and old_worker ~= worker then
  redis.call('PUBLISH', key('notifications'), job .. ' ' .. old_worker)
end
if worker ~= '' or old_worker == '' then
  redis.call('PUBLISH', key('notifications'), job .. ' ' .. worker)
end
return {'DONE', result}
