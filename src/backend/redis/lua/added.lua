-- Plain jobs have been added in the same transaction. KEYS[1] is the hash of jobs. ARGV: pairs of a type and how many.

local P, all = string.sub(KEYS[1], 1, -4), 0
for k = 1, #ARGV, 2 do
  redis.call('HINCRBY', P .. 'count', 'ready ' .. ARGV[k], ARGV[k + 1])
  local wake = P .. 'wake:' .. ARGV[k]
  if redis.call('LLEN', wake) == 0 then redis.call('RPUSH', wake, '1') end
  all = all + ARGV[k + 1]
end
redis.call('HINCRBY', P .. 'total', 'jobs', all)
