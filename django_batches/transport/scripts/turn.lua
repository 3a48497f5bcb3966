-- One turn of an executor: finishes its last job, takes the next one and marks it as started.
-- ARGV[4]: worker
-- ARGV[5]: current time in RQ's format
-- ARGV[6]: '1' to take the next job
-- ARGV[7]: id of the finished job, or ''
-- ARGV[8]: outcome of the finished job, or ''
-- ARGV[9]: queue of the finished job
-- ARGV[10]: how the finished job counts in RQ: 'successful' or 'failed'
-- ARGV[11]: seconds to add to the worker's working time; if '0', a worker that stays busy is not marked as busy again
-- Then the queues to search, in order. If none is given, all queues of RQ, each time starting with a different one.
-- Returns {'job', id, message, pushed at, queue, now}, {'rq', id, queue}, {'idle'}, {'suspended'} or {'retired'}.
-- Can safely run twice: an executor has one slot, and a turn returns the job that is already in the slot.
local worker, iso, take, finished = ARGV[4], ARGV[5], ARGV[6] == '1', ARGV[7]
local slot = slot_key(worker)
local running = redis.call('GET', slot)

if finished ~= '' then
  if ARGV[8] ~= '' then report(ARGV[8]) end
  remove(finished, ARGV[9])
end
-- The supervisor has reaped this executor: this call was on its way when the process died.
if running == RETIRED then return {'retired'} end
if finished == '' or running == finished then
  if ARGV[11] ~= '0' then redis.call('HINCRBYFLOAT', worker_key(worker), 'total_working_time', ARGV[11]) end
  if finished ~= '' then
    redis.call('HINCRBY', worker_key(worker), ARGV[10] .. '_job_count', 1)
    running = FREE
  end
end

-- Updates RQ's record of the worker: when it becomes busy, and about once a second while it stays so.
local function become_busy()
  -- Remove the last execution only after adding the next one: Redis deletes an empty set, with its expiry.
  if finished ~= '' then remove_execution(finished, worker) end
  if finished ~= '' and ARGV[11] == '0' then return end
  redis.call('HSET', worker_key(worker), 'state', 'busy')
  redis.call('EXPIRE', worker_key(worker) .. ':executions', LEASE + 60)
end

local function become_idle(state)
  redis.call('SET', slot, FREE, 'EX', 3600)
  redis.call('HSET', worker_key(worker), 'state', state)
  if finished ~= '' then
    remove_execution(finished, worker)
    -- Wake the coordinator: it need not wait for more outcomes to apply together with this one.
    redis.call('XADD', own .. ':idle', 'MAXLEN', '~', 10, '*', 'd', 1)
    redis.call('EXPIRE', own .. ':idle', 86400)
  end
  return {state}
end

if running and running ~= FREE then
  local fields = redis.call('HMGET', job_key(running), 'origin', 'batches', 'batches_pushed_at')
  if fields[1] then return {'job', running, fields[2], fields[3], fields[1], string.format('%.3f', now())} end
  -- The hash of the job in the slot was deleted, so there is nothing to run.
end

if not take then return become_idle('idle') end
if redis.call('EXISTS', rq .. ':suspended') == 1 then return become_idle('suspended') end

-- Pops the first job that this project may run. Batch jobs of other projects stay in the queue.
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
      -- This is an ordinary RQ job: put it where RQ's own worker keeps a job until it has started.
      redis.call('RPUSH', list .. ':intermediate', id)
      redis.call('SET', slot, FREE, 'EX', 3600)
      become_busy()
      return {'rq', id, queue}
    end
    local key = job_key(id)
    local fields = redis.call('HMGET', key, 'status', 'batches_owner', 'batches', 'batches_pushed_at')
    -- Check the status: the hash may be gone, or the id may be in the queue twice.
    if fields[1] == 'queued' and fields[2] then
      local batch, is_callback = owner_of(fields[2])
      -- Callbacks run even if their batch is on hold.
      if is_callback == 0 and redis.call('SISMEMBER', on_hold, batch) == 1 then
        report(cjson.encode({kind = 'on_hold', job_id = job_of(id), dispatch = tonumber(dispatch_of(id)),
          batch_id = batch}))
        remove(id, queue)
      else
        redis.call('HSET', key, 'status', 'started', 'started_at', iso, 'last_heartbeat', iso, 'worker_name', worker)
        redis.call('SET', slot, id, 'EX', 3600)
        write_lease(id, queue, worker, time)
        become_busy()
        return {'job', id, fields[3], fields[4], queue, string.format('%.3f', time)}
      end
    elseif fields[1] and not fields[2] then
      -- RQ requeued the job just as it ended, and so created a hash with only RQ's fields, which would never expire.
      remove(id, queue)
    end
  end
end
return become_idle('idle')
