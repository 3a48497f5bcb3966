-- Shared by all scripts. ARGV[1]: RQ's key prefix, ARGV[2]: ours, ARGV[3]: the prefix of our job ids.
local rq, own, mine = ARGV[1], ARGV[2], ARGV[3]
local LEASE = 45
local RETIRED = '!'  -- in the slot of an executor that was buried
local outcomes, wake, on_hold = own .. ':outcomes', own .. ':wake', own .. ':on_hold'

local function job_key(id) return rq .. ':job:' .. id end
local function worker_key(worker) return rq .. ':worker:' .. worker end
local function slot_key(worker) return own .. ':slot:' .. worker end

-- The number after the last dash: the dispatch, which is also the id of the execution in RQ's registries.
local function dispatch_of(id) return string.match(id, '%-(%d+)$') end

local function job_of(id) return string.match(id, '%-(%x+)%-%d+$') end

-- The field `batches_owner`: the batch, and whether the job is a callback of it (1) or not (0).
local function owner_of(text) return string.sub(text, 1, 32), tonumber(string.sub(text, 33)) end

local function is_ours(id) return string.sub(id, 1, #mine) == mine end

-- A job of another project on this Redis; an ordinary job may have any id, also one that begins with `batch-`.
local function is_foreign(id)
  if is_ours(id) then return false end
  local key = string.match(id, '^batch%-%w+%-(%x+)%-%d+$')
  return key ~= nil and #key == 32
end

-- Redis' own clock: the clocks of the hosts differ.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Writes the lease anew instead of prolonging it: after FLUSHALL there is nothing to prolong.
local function lease(id, queue, worker, time)
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

-- Every trace of one dispatch in RQ. The id holds the dispatch, so another run of the job keeps its own.
local function forget(id, queue)
  local execution = id .. ':' .. dispatch_of(id)
  redis.call('DEL', job_key(id), rq .. ':executions:' .. id, rq .. ':execution:' .. execution)
  if redis.call('ZREM', rq .. ':wip:' .. queue, execution) == 0 then
    -- A dashboard with a fast clock may have "abandoned" a live job into the failed ones.
    redis.call('ZREM', rq .. ':failed:' .. queue, id)
    redis.call('ZREM', rq .. ':canceled:' .. queue, id)  -- by somebody on a page, while it ran
  end
end

local function depart(id, worker)
  redis.call('SREM', worker_key(worker) .. ':executions', id .. ':' .. dispatch_of(id))
end

local function emit(outcome) redis.call('XADD', outcomes, '*', 'o', outcome) end
