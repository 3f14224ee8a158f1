-- Nothing -> ready: plain jobs that are certainly not stored yet. It does what enqueue.lua does for any job, and stands
-- alone because most calls bring a single job: half of their time went by before they came to it.
--
-- KEYS[1] is the hash of jobs. ARGV: runs of jobs: type, n, then n times id, rest; rest = "<type>\n<body>".

local call, P = redis.call, string.sub(KEYS[1], 1, -4)
call('EXISTS', P .. 'nothing') -- as in base.lua
local clock = call('TIME')
local place = math.max((call('GET', P .. 'place') or 0) + 1, clock[1] * 1000000 + clock[2]) - 1
local k, all = 1, 0
while k <= #ARGV do
  local ty, n = ARGV[k], tonumber(ARGV[k + 1])
  local jobs, line = {}, {}
  for j = 1, n do
    local id = ARGV[k + 2 * j]
    jobs[2 * j - 1], jobs[2 * j] = id, string.format('%d %s', place + j, ARGV[k + 2 * j + 1])
    line[j] = struct.pack('>I7', place + j) .. id
  end
  call('HSET', KEYS[1], unpack(jobs))
  local waiting = call('RPUSH', P .. 'fresh:' .. ty, unpack(line))
  call('HINCRBY', P .. 'count', 'ready ' .. ty, n)
  -- While others wait in line, their hint is enough.
  local wake = P .. 'wake:' .. ty
  if waiting == n and call('LLEN', wake) == 0 then call('RPUSH', wake, '1') end
  k, place, all = k + 2 + 2 * n, place + n, all + n
end
call('SET', P .. 'place', string.format('%d', place))
call('HINCRBY', P .. 'total', 'jobs', all)
