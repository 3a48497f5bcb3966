-- Precedes every script. ARGV[1]: RQ's key prefix, ARGV[2]: our key prefix, ARGV[3]: the prefix of our RQ ids.
local rq, own, id_prefix = ARGV[1], ARGV[2], ARGV[3]
local LEASE = 45
-- The slot of an executor holds the id of the job that it runs, or one of these.
local FREE, RETIRED = '-', '!'
local outcomes, wake, on_hold = own .. ':outcomes', own .. ':wake', own .. ':on_hold'

local function job_key(id) return rq .. ':job:' .. id end
local function worker_key(worker) return rq .. ':worker:' .. worker end
local function slot_key(worker) return own .. ':slot:' .. worker end

-- The dispatch is the number after the last dash. It is also the id of the execution in RQ's registries.
local function dispatch_of(id) return string.match(id, '%-(%d+)$') end

local function job_of(id) return string.match(id, '%-(%x+)%-%d+$') end

-- The field `batches_owner` holds the batch, and 1 for a callback or 0 for a job.
local function owner_of(text) return string.sub(text, 1, 32), tonumber(string.sub(text, 33)) end

local function is_ours(id) return string.sub(id, 1, #id_prefix) == id_prefix end

-- Whether it is a batch job of another project. Other RQ jobs may have any id, even one that begins with `batch-`.
local function is_foreign(id)
  if is_ours(id) then return false end
  local key = string.match(id, '^batch%-%w+%-(%x+)%-%d+$')
  return key ~= nil and #key == 32
end

-- Redis' clock, because the clocks of the hosts differ.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Writes all of a lease, also to renew it: after FLUSHALL there is none to extend.
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

-- Removes every trace of one dispatch from RQ. The id contains the dispatch, so another run of the job keeps its own.
local function remove(id, queue)
  local execution = id .. ':' .. dispatch_of(id)
  redis.call('DEL', job_key(id), rq .. ':executions:' .. id, rq .. ':execution:' .. execution)
  if redis.call('ZREM', rq .. ':wip:' .. queue, execution) == 0 then
    -- A dashboard whose clock is ahead may have moved a running job to the failed jobs,
    redis.call('ZREM', rq .. ':failed:' .. queue, id)
    -- and a user may have cancelled it there while it ran.
    redis.call('ZREM', rq .. ':canceled:' .. queue, id)
  end
end

local function remove_execution(id, worker)
  redis.call('SREM', worker_key(worker) .. ':executions', id .. ':' .. dispatch_of(id))
end

local function report(outcome) redis.call('XADD', outcomes, '*', 'o', outcome) end
