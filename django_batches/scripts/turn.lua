-- One turn of an executor: finish the last job, take the next, mark it started.
-- ARGV[4]: worker, [5]: the time as RQ writes it, [6]: '1' to take, [7]: id of the finished job or '', [8]: its
-- outcome or '', [9]: its queue, [10]: 'successful' or 'failed', [11]: seconds it ran, then the queues to look at, in order
-- (none: all that RQ knows, the first one by turns).
-- Gives {'job', id, message, pushed at, queue, now}, {'rq', id, queue}, {'idle'}, {'suspended'} or {'retired'}.
-- Safe when sent again: an executor has one slot, and a turn with an occupied slot gives its occupant.
local worker, iso, wants, finished = ARGV[4], ARGV[5], ARGV[6] == '1', ARGV[7]
local slot = slot_key(worker)

if finished ~= '' then
  if ARGV[8] ~= '' then emit(ARGV[8]) end
  forget(finished, ARGV[9], worker)
  if redis.call('GET', slot) == finished then
    redis.call('SET', slot, '-', 'EX', 3600)
    redis.call('HINCRBY', worker_key(worker), ARGV[10] .. '_job_count', 1)
    redis.call('HINCRBYFLOAT', worker_key(worker), 'total_working_time', ARGV[11])
  end
end

-- Buried by the supervisor: this call was on its way when the process died.
if redis.call('EXISTS', own .. ':retired:' .. worker) == 1 then return {'retired'} end

local function given(id, queue, time)
  local fields = redis.call('HMGET', job_key(id), 'batches', 'batches_pushed_at')
  return {'job', id, fields[1], fields[2], queue, string.format('%.3f', time)}
end

local occupant = redis.call('GET', slot)
if occupant and occupant ~= '-' then
  local origin = redis.call('HGET', job_key(occupant), 'origin')
  if origin then return given(occupant, origin, now()) end
  redis.call('SET', slot, '-', 'EX', 3600)  -- its hash was wiped, so there is nothing to run
end

local function state(name) redis.call('HSET', worker_key(worker), 'state', name) end

if not wants then state('idle') return {'idle'} end
if redis.call('EXISTS', rq .. ':suspended') == 1 then state('suspended') return {'suspended'} end

-- A job of another project on this Redis stays where it is; look behind it.
local function first_of(list)
  local id = redis.call('LINDEX', list, 0)
  if not id or not is_foreign(id) then return id end
  for _, other in ipairs(redis.call('LRANGE', list, 1, 50)) do
    if not is_foreign(other) then return other end
  end
  return false
end

local lists = {}
for index = 12, #ARGV do lists[#lists + 1] = rq .. ':queue:' .. ARGV[index] end
if #lists == 0 then
  local all = redis.call('SMEMBERS', rq .. ':queues')
  table.sort(all)
  local turn = #all > 1 and redis.call('INCR', own .. ':turn') or 0
  if #all > 1 then redis.call('EXPIRE', own .. ':turn', 86400) end
  for index = 1, #all do lists[index] = all[(index - 1 + turn) % #all + 1] end
end

local time = now()
for _, list in ipairs(lists) do
  local queue = string.sub(list, #rq + 8)
  for _ = 1, 1000 do
    local id = first_of(list)
    if not id then break end
    redis.call('LREM', list, 1, id)
    if not is_ours(id) then
      -- An ordinary RQ job: kept where RQ's own worker keeps it until it has started.
      redis.call('RPUSH', list .. ':intermediate', id)
      state('busy')
      return {'rq', id, queue}
    end
    local key = job_key(id)
    local fields = redis.call('HMGET', key, 'status', 'batches_owner')
    -- A compare-and-set: the hash may be gone, or the id may stand in the list twice.
    if fields[1] == 'queued' and fields[2] then
      local batch, is_callback = owner_of(fields[2])
      -- The callbacks of a cancelled batch run: somebody waits to be told.
      if is_callback == 0 and redis.call('SISMEMBER', held, batch) == 1 then
        emit(cjson.encode({k = 'held', j = job_of(id), d = tonumber(dispatch_of(id)), b = batch, c = 0}))
        forget(id, queue, worker)
      else
        redis.call('HSET', key, 'status', 'started', 'started_at', iso, 'last_heartbeat', iso, 'worker_name', worker)
        redis.call('SET', slot, id, 'EX', 3600)
        lease(id, queue, worker, time)
        state('busy')
        return given(id, queue, time)
      end
    end
  end
end
state('idle')
return {'idle'}
