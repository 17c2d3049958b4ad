-- Counts a gateway among those that are there, for a while. A gateway that takes leases counts with each of them.
-- KEYS: gateways (sorted set: id, until when it counts).
-- ARGV: id, how long the gateway counts in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
