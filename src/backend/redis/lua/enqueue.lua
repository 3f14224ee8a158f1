-- Nothing -> ready, scheduled or blocked: all jobs of the call or none.
--
-- ARGV: 'new' when it is certain that none of the jobs is stored yet, else ''; then runs of jobs, in the order of their
-- places:
--   'p', type, n, then n times id, rest          single jobs with nothing special; rest = "<type>\n<body>"
--   's', type, id, rest, delay, unique key        a single job; rest = "<type> <flags> <options>\n<body>"
--   'c', chain, n, then n times type, id, rest, delay     a chain
-- Returns pairs: a job by its number in the call, from 1, and the id of the holder of its unique key.

local jobs, states, unique, chains, scheduled, tickets, held = {}, {}, {}, {}, {}, {}, {}
local number, linked = 0, 0
local before = last_place()

local function put(id, place, rest)
  jobs[#jobs + 1] = id
  jobs[#jobs + 1] = place .. ' ' .. rest
end

local function join(ty, place, id)
  local waiting = tickets[ty] or {}
  tickets[ty] = waiting
  waiting[#waiting + 1] = ticket(place, id)
end

local function waits(id, state, moment, flags, ty)
  states[#states + 1] = id
  states[#states + 1] = state .. ' ' .. moment .. ' ' .. flags .. ' ' .. ty .. ' 0 0 0 0'
  count(state, ty, 1)
end

local function starts(id, ty, place, flags, delay)
  if delay == '0' then
    join(ty, place, id)
  else
    local due = int(math.min(place + delay, NEVER))
    waits(id, 'scheduled', due, flags, ty)
    scheduled[#scheduled + 1] = { due, id, ty }
  end
end

local k = 2
while k <= #ARGV do
  local kind = ARGV[k]
  if kind == 'p' then
    local ty, n, ids = ARGV[k + 1], tonumber(ARGV[k + 2]), {}
    for j = 1, n do ids[j] = ARGV[k + 1 + 2 * j] end
    local stored = ARGV[1] == 'new' and {} or read_all(JOB, ids)
    for j = 1, n do
      if not stored[j] then
        local place = int(before + number + j)
        put(ids[j], place, ARGV[k + 2 + 2 * j])
        join(ty, place, ids[j])
      end
    end
    number, k = number + n, k + 3 + 2 * n
  elseif kind == 's' then
    local ty, id, rest, delay, key = ARGV[k + 1], ARGV[k + 2], ARGV[k + 3], ARGV[k + 4], ARGV[k + 5]
    number, k = number + 1, k + 6
    local field = ty .. ' ' .. key
    local holder = key ~= '' and (unique[field] or call('HGET', P .. 'unique', field))
    if holder then
      held[#held + 1] = number
      held[#held + 1] = holder
    elseif call('HEXISTS', JOB, id) == 0 then
      local place = int(before + number)
      put(id, place, rest)
      if key ~= '' then unique[field] = id end
      starts(id, ty, place, key ~= '' and '-u' or '-', delay)
    end
  else
    local chain, n = ARGV[k + 1], tonumber(ARGV[k + 2])
    local is_stored = call('HEXISTS', P .. 'chain', chain) == 1
    local members = {}
    for j = 1, n do
      local ty, id, rest, delay = ARGV[k - 1 + 4 * j], ARGV[k + 4 * j], ARGV[k + 1 + 4 * j], ARGV[k + 2 + 4 * j]
      members[j] = id
      if not is_stored then
        local place = int(before + number + j)
        put(id, place, rest)
        if j == 1 then starts(id, ty, place, '-c', delay) else waits(id, 'blocked', 0, '-c', ty) end
      end
    end
    if not is_stored then
      chains[#chains + 1] = chain
      chains[#chains + 1] = n .. ' 0:' .. table.concat(members)
      linked = linked + n - 1
    end
    number, k = number + n, k + 3 + 4 * n
  end
end
if #jobs == 0 then
  -- After a try whose answer was lost, a write all the same: what WAIT and WAITAOF wait for is what this connection wrote,
  -- and all before it.
  if ARGV[1] ~= 'new' then call('HINCRBY', TOTAL, 'jobs', 0) end
  return held
end

many('HSET', JOB, jobs)
call('SET', P .. 'place', int(before + number))
many('HSET', STATE, states)
many('HSET', P .. 'chain', chains)
for field, id in pairs(unique) do call('HSET', P .. 'unique', field, id) end
for ty, waiting in pairs(tickets) do
  many('RPUSH', P .. 'fresh:' .. ty, waiting)
  count('ready', ty, #waiting)
  wake(ty)
end
for _, entry in ipairs(scheduled) do
  call('ZADD', P .. 'due', entry[1], entry[2])
  if call('ZRANK', P .. 'due', entry[2]) == 0 then wake(entry[3]) end
end
add(totals, 'jobs', #jobs / 2)
add(totals, 'linked', linked)
write_counts()
return held
