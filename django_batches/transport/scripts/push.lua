-- Puts claimed jobs into their queue. ARGV[4]: the token of the coordinator, [5]: queue, [6]: '1' for the front,
-- [7]: the time as RQ writes it, [8]: the constant `data`, [9]: a name of this push, then per job: id, message,
-- owner (the batch, and 1 for a callback or 0), timeout, description.
-- Gives the number pushed, or -1 where a newer coordinator has pushed before.
local token, queue, front, iso, data = tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1', ARGV[7], ARGV[8]
local fence = own .. ':fence'
local newest = tonumber(redis.call('GET', fence) or '0')
if token < newest then return -1 end
redis.call('SET', fence, token, 'EX', 86400)
-- Sent again by the client after a lost answer: some of its jobs may have ended meanwhile, and left no trace.
if redis.call('GET', own .. ':pushed') == ARGV[9] then return 0 end
redis.call('SET', own .. ':pushed', ARGV[9], 'EX', 86400)
local pushed_at = string.format('%.3f', now())
local pushed = {}
for index = 10, #ARGV, 5 do
  local id = ARGV[index]
  local key = job_key(id)
  -- Two entries in the list would run the job twice at once.
  if redis.call('EXISTS', key) == 0 then
    redis.call('HSET', key, 'created_at', iso, 'enqueued_at', iso, 'data', data, 'origin', queue, 'status', 'queued',
      'timeout', ARGV[index + 3], 'description', ARGV[index + 4], 'result_ttl', 0, 'failure_ttl', 3600,
      'batches', ARGV[index + 1], 'batches_owner', ARGV[index + 2], 'batches_pushed_at', pushed_at)
    pushed[#pushed + 1] = id
  end
end
local list = rq .. ':queue:' .. queue
for index = 1, #pushed do
  -- At the front the last one first, so that the first one is in front.
  if front then redis.call('LPUSH', list, pushed[#pushed - index + 1]) else redis.call('RPUSH', list, pushed[index]) end
end
redis.call('SADD', rq .. ':queues', list)
redis.call('XADD', wake, 'MAXLEN', '~', 10, '*', 'w', 1)
redis.call('EXPIRE', wake, 86400)
return #pushed
