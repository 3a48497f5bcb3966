-- Renews the leases of the jobs that the executors of a supervisor run.
-- ARGV[4]: current time in RQ's format
-- Then three per executor: its name, the id of the job that it runs, the job's queue.
-- Skips an executor that, in the meantime, has finished this job or taken another one.
local iso, time = ARGV[4], now()
for index = 5, #ARGV, 3 do
  local worker, id, queue = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local running = redis.call('GET', slot_key(worker))
  -- If there is no slot, its key was deleted (for example by FLUSHALL) while the job was running.
  if not running or running == id then
    redis.call('SET', slot_key(worker), id, 'EX', 3600)
    write_lease(id, queue, worker, time)
    redis.call('EXPIRE', worker_key(worker) .. ':executions', LEASE + 60)
    if redis.call('EXISTS', job_key(id)) == 1 then redis.call('HSET', job_key(id), 'last_heartbeat', iso) end
  end
end
return 1
