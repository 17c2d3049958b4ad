-- Ends one attempt at an order by which nothing was done: the turn is free when all have ended so.
-- KEYS: the use (hash: order, at, open).
-- ARGV: order.
if redis.call('HGET', KEYS[1], 'order') == ARGV[1] and redis.call('HINCRBY', KEYS[1], 'open', -1) <= 0 then
  redis.call('DEL', KEYS[1])
end
return 0
