-- Every script begins with this file, and those that take jobs from state to state go on with state.lua. KEYS[1] is the
-- hash of jobs, "dejq:{queue}:job"; all other keys of the queue begin as it does and lie in the same slot. keys.rs says
-- what each of them holds.
--
-- Redis undoes nothing when a script fails half-way: a script first reads and checks, then writes. When memory is full
-- it refuses a script at its first write that needs memory, so that enqueue.lua begins with such a write and the others
-- with one that needs none.

local call, match, sub, format = redis.call, string.match, string.sub, string.format
local P = sub(KEYS[1], 1, -4)
local JOB, STATE, COUNT, TOTAL = KEYS[1], P .. 'state', P .. 'count', P .. 'total'
-- unpack() takes some 8,000 values.
local MOST = 3500

-- Microseconds since 1970. They fit a double until the year 2255, but not tostring(), which keeps 14 digits.
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local NEVER = 9e15
local function int(number) return format('%d', number) end
local NOW = int(now)

-- While a slot of a cluster moves to another node, keys that are not there raise an error. This one never is: nothing is
-- done by halves.
call('EXISTS', P .. 'nothing')

-- Calls a command with any number of values, some thousand at a time.
local function many(command, key, values)
  local n = #values
  for first = 1, n, 2 * MOST do
    call(command, key, unpack(values, first, math.min(first + 2 * MOST - 1, n)))
  end
end

local function read_all(key, fields)
  if #fields == 0 then return {} end
  if #fields <= 2 * MOST then return call('HMGET', key, unpack(fields)) end
  local values, n = {}, #fields
  for first = 1, n, 2 * MOST do
    local part = call('HMGET', key, unpack(fields, first, math.min(first + 2 * MOST - 1, n)))
    for j = 1, #part do values[first + j - 1] = part[j] end
  end
  return values
end

-- A first write that needs no memory, and changes nothing: what comes after it works also when memory is full.
local function in_any_case() call('PERSIST', JOB) end

-- ---- counts: put together, and written once for all jobs of a step ---------------------------------------------

local counts, totals = {}, {}
local function add(sums, name, n) sums[name] = (sums[name] or 0) + n end
local function count(state, ty, n) add(counts, state .. ' ' .. ty, n) end
local function write_counts()
  for name, n in pairs(counts) do
    if n ~= 0 then call('HINCRBY', COUNT, name, n) end
  end
  for name, n in pairs(totals) do
    if n ~= 0 then call('HINCRBY', TOTAL, name, int(n)) end
  end
  counts, totals = {}, {}
end

-- ---- places: the order in which jobs of a type start -----------------------------------------------------------

-- New places come after this one. A place is the time at which it was given, or the next free microsecond after that.
local function last_place() return math.max(tonumber(call('GET', P .. 'place') or 0), now - 1) end

-- The first of n new places.
local function take_places(n)
  local last = last_place()
  call('SET', P .. 'place', int(last + n))
  return last + 1
end

-- What stands in line for a job that was never claimed: its place in 7 bytes, and its id.
local function ticket(place, id) return struct.pack('>I7', place) .. id end
local function place_of(entry) return struct.unpack('>I7', entry) end
local function id_of(entry) return sub(entry, 8) end

-- ---- those who wait --------------------------------------------------------------------------------------------

local woken = {}
-- One hint per type is enough: who takes it and leaves jobs behind passes it on.
local function wake(ty)
  if woken[ty] then return end
  woken[ty] = true
  local key = P .. 'wake:' .. ty
  if call('LLEN', key) == 0 then call('RPUSH', key, '1') end
end

-- ---- workers -------------------------------------------------------------------------------------------------

-- Notes that the server is awake. After a pause that may have kept workers from beating (a slow command of somebody
-- else, a snapshot, a stopped machine, a clock that was set) `since` begins anew: nobody is taken for lost before every
-- worker had the time for a beat.
local function tick(lease)
  local last, since = match(call('GET', P .. 'awake') or '', '^(%d+) (%d+)$')
  last, since = tonumber(last or 0), tonumber(since or 0)
  if now < last or now - last > lease * 2 / 3 then since = now end
  call('SET', P .. 'awake', NOW .. ' ' .. int(since))
  return since
end

-- Somebody who claims or beats. A beat renews the lease of a worker, and with it those of all its jobs; a claim does not,
-- but the jobs that it brings have their lease from now on.
local function seen(worker, name, lease, is_beat)
  local key, until_ = P .. 'workers', int(now + lease)
  local is_new = call('ZADD', key, 'NX', until_, worker) == 1
  if is_beat then call('ZADD', key, 'XX', until_, worker) end
  if is_new then call('HSET', P .. 'worker', worker, int(lease) .. ' ' .. name) end
  tick(lease)
end
