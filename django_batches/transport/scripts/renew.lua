-- The supervisor renews the leases of its executors. ARGV[4]: the time as RQ writes it, then per executor: name, id of
-- the job it runs or '', its queue. An executor that has finished this job meanwhile, or taken another, is passed over.
local iso, time = ARGV[4], now()
for index = 5, #ARGV, 3 do
  local worker, id, queue = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  if id ~= '' then
    local occupant = redis.call('GET', slot_key(worker))
    -- No slot at all: the keys were wiped, and the job still runs.
    if not occupant or occupant == id then
      redis.call('SET', slot_key(worker), id, 'EX', 3600)
      lease(id, queue, worker, time)
      redis.call('EXPIRE', worker_key(worker) .. ':executions', LEASE + 60)
      if redis.call('EXISTS', job_key(id)) == 1 then redis.call('HSET', job_key(id), 'last_heartbeat', iso) end
    end
  end
end
return 1
