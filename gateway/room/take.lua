-- Takes a user's turn for an order, unless another order has it. Returns 1 if it is taken.
-- KEYS: the use (hash: order, at, open).
-- ARGV: order, when the user entered, now, both in µs after the opening, how long to remember in ms.
local has = redis.call('HMGET', KEYS[1], 'order', 'at')
if has[1] == ARGV[1] then
  redis.call('HINCRBY', KEYS[1], 'open', 1)
elseif has[1] and tonumber(ARGV[2]) <= tonumber(has[2]) then
  return 0
else
  redis.call('HSET', KEYS[1], 'order', ARGV[1], 'at', ARGV[3], 'open', 1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
