-- One turn of an executor: finish the last job, take the next, mark it started.
-- ARGV[4]: worker, [5]: the time as RQ writes it, [6]: '1' to take, [7]: id of the finished job or '', [8]: its
-- outcome or '', [9]: its queue, [10]: 'successful' or 'failed', [11]: seconds to add to its working time, '0' for
-- later, then the queues to look at, in order (none: all that RQ knows, the first one by turns).
-- Gives {'job', id, message, pushed at, queue, now}, {'rq', id, queue}, {'idle'}, {'suspended'} or {'retired'}.
-- Safe when sent again: an executor has one slot, and a turn with an occupied slot gives its occupant.
local worker, iso, wants, finished = ARGV[4], ARGV[5], ARGV[6] == '1', ARGV[7]
local slot = slot_key(worker)
local occupant = redis.call('GET', slot)

if finished ~= '' then
  if ARGV[8] ~= '' then emit(ARGV[8]) end
  forget(finished, ARGV[9])
end
if finished == '' or occupant == finished then
  if ARGV[11] ~= '0' then redis.call('HINCRBYFLOAT', worker_key(worker), 'total_working_time', ARGV[11]) end
  if finished ~= '' then
    redis.call('HINCRBY', worker_key(worker), ARGV[10] .. '_job_count', 1)
    occupant = '-'
  end
end

-- Buried by the supervisor: this call was on its way when the process died.
if occupant == RETIRED then return {'retired'} end

-- Tells RQ: at every change, and about once a second while one job follows the other.
local function busy()
  -- After the next one has been added: an empty set would be gone, and its expiry with it.
  if finished ~= '' then depart(finished, worker) end
  if finished ~= '' and ARGV[11] == '0' then return end
  redis.call('HSET', worker_key(worker), 'state', 'busy')
  redis.call('EXPIRE', worker_key(worker) .. ':executions', LEASE + 60)
end

local function at_rest(state)
  redis.call('SET', slot, '-', 'EX', 3600)
  redis.call('HSET', worker_key(worker), 'state', state)
  if finished ~= '' then
    depart(finished, worker)
    -- Nothing to wait for any more: the coordinator need not gather further outcomes.
    redis.call('XADD', own .. ':idle', 'MAXLEN', '~', 10, '*', 'd', 1)
    redis.call('EXPIRE', own .. ':idle', 86400)
  end
  return {state}
end

if occupant and occupant ~= '-' then
  local fields = redis.call('HMGET', job_key(occupant), 'origin', 'batches', 'batches_pushed_at')
  if fields[1] then return {'job', occupant, fields[2], fields[3], fields[1], string.format('%.3f', now())} end
  -- Its hash was wiped, so there is nothing to run.
end

if not wants then return at_rest('idle') end
if redis.call('EXISTS', rq .. ':suspended') == 1 then return at_rest('suspended') end

-- A job of another project on this Redis stays where it is; look behind it.
local function pop(list)
  local id = redis.call('LPOP', list)
  if not id or not is_foreign(id) then return id end
  redis.call('LPUSH', list, id)
  for first = 1, 1000, 50 do
    local others = redis.call('LRANGE', list, first, first + 49)
    for _, other in ipairs(others) do
      if not is_foreign(other) then
        redis.call('LREM', list, 1, other)
        return other
      end
    end
    if #others < 50 then return false end
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
    local id = pop(list)
    if not id then break end
    if not is_ours(id) then
      -- An ordinary RQ job: kept where RQ's own worker keeps it until it has started.
      redis.call('RPUSH', list .. ':intermediate', id)
      redis.call('SET', slot, '-', 'EX', 3600)
      busy()
      return {'rq', id, queue}
    end
    local key = job_key(id)
    local fields = redis.call('HMGET', key, 'status', 'batches_owner', 'batches', 'batches_pushed_at')
    -- A compare-and-set: the hash may be gone, or the id may stand in the list twice.
    if fields[1] == 'queued' and fields[2] then
      local batch, is_callback = owner_of(fields[2])
      -- The callbacks of a cancelled batch run: somebody waits to be told.
      if is_callback == 0 and redis.call('SISMEMBER', on_hold, batch) == 1 then
        emit(cjson.encode({k = 'on_hold', j = job_of(id), d = tonumber(dispatch_of(id)), b = batch, c = 0}))
        forget(id, queue)
      else
        redis.call('HSET', key, 'status', 'started', 'started_at', iso, 'last_heartbeat', iso, 'worker_name', worker)
        redis.call('SET', slot, id, 'EX', 3600)
        lease(id, queue, worker, time)
        busy()
        return {'job', id, fields[3], fields[4], queue, string.format('%.3f', time)}
      end
    elseif fields[1] and not fields[2] then
      -- Requeued by RQ in the moment of its end: it has written its own fields anew, without an expiry.
      forget(id, queue)
    end
  end
end
return at_rest('idle')
