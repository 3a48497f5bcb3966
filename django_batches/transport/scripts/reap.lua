-- Reaps a dead executor: reports the outcome of the job that it was running, and removes the executor from RQ.
-- Also marks its slot as retired, because the executor's last turn may still arrive after its death.
-- ARGV[4]: worker
-- ARGV[5]: id of the job to stop, or ''
-- ARGV[6]: the outcome to report, as JSON without the ids of the job and its batch
-- ARGV[7]: the outcome to report instead if the executor was running another job than ARGV[5]
-- Returns the id of the job that the executor was running, or false.
local worker, to_stop = ARGV[4], ARGV[5]
local queues = redis.call('HGET', worker_key(worker), 'queues')
for queue in string.gmatch(queues or '', '[^,]+') do redis.call('SREM', rq .. ':workers:' .. queue, worker_key(worker)) end
redis.call('SREM', rq .. ':workers', worker_key(worker))
redis.call('DEL', worker_key(worker), worker_key(worker) .. ':executions')

local id = redis.call('GET', slot_key(worker))
redis.call('SET', slot_key(worker), RETIRED, 'EX', 120)
if not id or id == FREE or id == RETIRED then return false end
local fields = redis.call('HMGET', job_key(id), 'batches_owner', 'origin', 'started_at')
if not fields[1] then return false end
local outcome = cjson.decode((to_stop == '' or to_stop == id) and ARGV[6] or ARGV[7])
local batch, is_callback = owner_of(fields[1])
outcome.batch_id, outcome.is_job_of_batch = batch, is_callback == 0
outcome.job_id, outcome.dispatch = job_of(id), tonumber(dispatch_of(id))
if outcome.kind ~= 'vanished' then outcome.started_at = fields[3] or nil end
report(cjson.encode(outcome))
remove(id, fields[2])
return id
