-- Takes a job that has not been started out of its queue. ARGV[4]: id, [5]: queue. Gives 1, or 0 where it has.
local id, queue = ARGV[4], ARGV[5]
if redis.call('HGET', job_key(id), 'status') ~= 'queued' then return 0 end
redis.call('LREM', rq .. ':queue:' .. queue, 0, id)
redis.call('DEL', job_key(id))
return 1
