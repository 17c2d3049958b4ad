-- Puts what one gateway gives of one global rate into the pot of all gateways, and takes from it what that gateway wants. While they want more
-- than there is, each gets its part of it by what it is asked for.
-- KEYS: pot (hash), gateways (sorted set: id, until when it counts), asks (hash: id, calls a second).
-- ARGV: id, calls a second of all, tokens at most, tokens given, tokens wanted, calls a second that this gateway is asked for, how long the gateway
-- counts and for how long a pot is young, both in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id, rate, most, give, want = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local asks, ttl, youth = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])

local joined = redis.call('ZADD', KEYS[2], now + ttl, id)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('HDEL', KEYS[3], gone)
end
redis.call('HSET', KEYS[3], id, asks)
local total = 0
for _, value in ipairs(redis.call('HVALS', KEYS[3])) do
  total = total + tonumber(value)
end

local pot = redis.call('HMGET', KEYS[1], 'tokens', 'born')
-- A pot that is new, or was lost, begins empty: what was in it is not given again.
local tokens, born = math.min(most, tonumber(pot[1] or 0) + give), tonumber(pot[2] or now)
local grant = math.min(want, tokens)
if total > rate then
  grant = math.min(grant, tokens * asks / total)
end
redis.call('HSET', KEYS[1], 'tokens', tokens - grant, 'born', born)
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ttl * 10)
end
local young = 0
if now - born < youth then
  young = 1
end
return { string.format('%.9f', grant), redis.call('ZCARD', KEYS[2]), joined, young }
