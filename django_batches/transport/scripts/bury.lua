-- Retires a dead executor and takes its job, in one step: its last turn may still be on the way.
-- ARGV[4]: worker, [5]: id that was asked to be stopped or '', [6]: kind of the outcome, [7]: kind for an innocent
-- occupant, [8]: type of the error, [9]: its message, [10]: fingerprint, [11]: the current time in seconds.
-- Gives the id of the occupant, or false.
local worker, asked = ARGV[4], ARGV[5]
local id = redis.call('GET', slot_key(worker))
redis.call('SET', slot_key(worker), RETIRED, 'EX', 120)
if not id or id == '-' or id == RETIRED then return false end
local fields = redis.call('HMGET', job_key(id), 'batches_owner', 'origin', 'started_at')
if not fields[1] then return false end
local batch, is_callback = owner_of(fields[1])
local kind = (asked == '' or asked == id) and ARGV[6] or ARGV[7]
emit(cjson.encode({k = kind, j = job_of(id), d = tonumber(dispatch_of(id)), b = batch, c = is_callback,
  w = worker, t = ARGV[8], e = ARGV[9], p = ARGV[10], s = kind ~= ARGV[7] and fields[3] or nil, f = tonumber(ARGV[11])}))
forget(id, fields[2])
depart(id, worker)
return id
