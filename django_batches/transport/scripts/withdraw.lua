-- Removes a job from its queue unless it has started.
-- ARGV[4]: id
-- ARGV[5]: queue
-- Returns 1, or 0 if the job has started.
local id, queue = ARGV[4], ARGV[5]
if redis.call('HGET', job_key(id), 'status') ~= 'queued' then return 0 end
redis.call('LREM', rq .. ':queue:' .. queue, 0, id)
redis.call('DEL', job_key(id))
return 1
