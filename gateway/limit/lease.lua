-- Takes tokens of one global rate for one gateway, for a while. All gateways share the bucket; while they want more than it gets, each gets
-- its part of what is there by what it wants.
-- KEYS: bucket (hash), gateways (sorted set: id, until when it counts), wants (hash: id, calls a second).
-- ARGV: id, tokens a second, tokens at most, tokens wanted now, calls a second, how long the gateway counts in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, rate, most, want, asks, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

redis.call('ZADD', KEYS[2], now + ttl, id)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('HDEL', KEYS[3], gone)
end
redis.call('HSET', KEYS[3], id, asks)
local total = 0
for _, value in ipairs(redis.call('HVALS', KEYS[3])) do
  total = total + tonumber(value)
end

local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
-- A bucket that is new, or was lost, begins empty: whatever it gave before is not given again.
local tokens, at = tonumber(bucket[1] or 0), tonumber(bucket[2] or now)
tokens = math.min(most, tokens + math.max(0, now - at) * rate / 1000)
local grant = math.min(want, tokens)
if total > rate then
  grant = math.min(grant, tokens * asks / total)
end
grant = math.floor(grant)
redis.call('HSET', KEYS[1], 'tokens', tokens - grant, 'at', now)
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl * 10)
end
return { grant, redis.call('ZCARD', KEYS[2]) }
