-- Begins every script. ARGV[1]: RQ's key prefix, ARGV[2]: our key prefix, ARGV[3]: the prefix of our RQ ids.
local rq, own, id_prefix = ARGV[1], ARGV[2], ARGV[3]
local LEASE = 45
-- The slot of an executor contains the RQ id of the job that it runs, or one of these two values.
local FREE, RETIRED = '-', '!'
local outcomes, wake, on_hold = own .. ':outcomes', own .. ':wake', own .. ':on_hold'

local function job_key(id) return rq .. ':job:' .. id end
local function worker_key(worker) return rq .. ':worker:' .. worker end
local function slot_key(worker) return own .. ':slot:' .. worker end

-- The dispatch number follows the last dash of an RQ id. It is also the id of the execution in RQ's registries.
local function dispatch_of(id) return string.match(id, '%-(%d+)$') end

local function job_of(id) return string.match(id, '%-(%x+)%-%d+$') end

-- Splits the field `batches_owner`: 32 digits are the batch's id, then 1 stands for a callback and 0 for a job.
local function owner_of(text) return string.sub(text, 1, 32), tonumber(string.sub(text, 33)) end

local function is_ours(id) return string.sub(id, 1, #id_prefix) == id_prefix end

-- Returns true for a batch job of another project. An ordinary RQ job may have any id, even one with `batch-`.
local function is_foreign(id)
  if is_ours(id) then return false end
  local key = string.match(id, '^batch%-%w+%-(%x+)%-%d+$')
  return key ~= nil and #key == 32
end

-- Reads Redis' clock, because the clocks of the hosts differ.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Writes every key of a lease. A renewal does so too, because FLUSHALL may have deleted the keys.
local function write_lease(id, queue, worker, time)
  local dispatch = dispatch_of(id)
  local execution = id .. ':' .. dispatch
  local stamp = string.format('%.3f', time)
  local key = rq .. ':execution:' .. execution
  redis.call('HSET', key, 'id', dispatch, 'job_id', id, 'created_at', stamp, 'last_heartbeat', stamp,
    'worker_name', worker)
  redis.call('EXPIRE', key, LEASE)
  redis.call('ZADD', rq .. ':wip:' .. queue, string.format('%.3f', time + LEASE), execution)
  redis.call('ZADD', rq .. ':executions:' .. id, string.format('%.3f', time + LEASE + 60), dispatch)
  redis.call('EXPIRE', rq .. ':executions:' .. id, LEASE + 60)
  redis.call('SADD', worker_key(worker) .. ':executions', execution)
end

-- Removes all keys of one dispatch from RQ. Another dispatch of the same job has another id, and so keeps its keys.
local function remove(id, queue)
  local execution = id .. ':' .. dispatch_of(id)
  redis.call('DEL', job_key(id), rq .. ':executions:' .. id, rq .. ':execution:' .. execution)
  if redis.call('ZREM', rq .. ':wip:' .. queue, execution) == 0 then
    -- A dashboard whose clock is ahead may have moved the running job to RQ's failed jobs.
    redis.call('ZREM', rq .. ':failed:' .. queue, id)
    -- A user may have cancelled the running job in a dashboard.
    redis.call('ZREM', rq .. ':canceled:' .. queue, id)
  end
end

local function remove_execution(id, worker)
  redis.call('SREM', worker_key(worker) .. ':executions', id .. ':' .. dispatch_of(id))
end

local function report(outcome) redis.call('XADD', outcomes, '*', 'o', outcome) end
