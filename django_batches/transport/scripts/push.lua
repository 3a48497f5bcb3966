-- Pushes claimed jobs to their queue.
-- ARGV[4]: lease token of the coordinator
-- ARGV[5]: queue
-- ARGV[6]: '1' for the front of the queue
-- ARGV[7]: current time in RQ's format
-- ARGV[8]: RQ's field `data`, which is the same for every job
-- ARGV[9]: unique id of this push
-- Then five per job: id, message, owner (see owner_of), timeout, description.
-- Returns the number of jobs pushed, or -1 if a coordinator with a newer lease has pushed.
local token, queue, front, iso, data = tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1', ARGV[7], ARGV[8]
local fence = own .. ':fence'
local newest = tonumber(redis.call('GET', fence) or '0')
if token < newest then return -1 end
redis.call('SET', fence, token, 'EX', 86400)
-- The client repeats a push whose reply was lost. By then, some of its jobs may have ended and have no keys.
if redis.call('GET', own .. ':pushed') == ARGV[9] then return 0 end
redis.call('SET', own .. ':pushed', ARGV[9], 'EX', 86400)
local pushed_at = string.format('%.3f', now())
local pushed = {}
for index = 10, #ARGV, 5 do
  local id = ARGV[index]
  local key = job_key(id)
  -- Skip a job that is in Redis already: with two entries in the queue, it could run twice at once.
  if redis.call('EXISTS', key) == 0 then
    redis.call('HSET', key, 'created_at', iso, 'enqueued_at', iso, 'data', data, 'origin', queue, 'status', 'queued',
      'timeout', ARGV[index + 3], 'description', ARGV[index + 4], 'result_ttl', 0, 'failure_ttl', 3600,
      'batches', ARGV[index + 1], 'batches_owner', ARGV[index + 2], 'batches_pushed_at', pushed_at)
    pushed[#pushed + 1] = id
  end
end
local list = rq .. ':queue:' .. queue
for index = 1, #pushed do
  -- Push to the front in reverse order, so that the first job comes first.
  if front then redis.call('LPUSH', list, pushed[#pushed - index + 1]) else redis.call('RPUSH', list, pushed[index]) end
end
redis.call('SADD', rq .. ':queues', list)
redis.call('XADD', wake, 'MAXLEN', '~', 10, '*', 'w', 1)
redis.call('EXPIRE', wake, 86400)
return #pushed
