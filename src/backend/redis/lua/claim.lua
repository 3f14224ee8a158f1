-- ready -> running, oldest job first over all types asked for.
--
-- ARGV: worker, its name, lease, token, limit, then types, each once.
-- Returns the time until the next scheduled job is due, -1 when there is none, 0 when there may be more to take now; and
-- then fours: attempt, place (0: those of the jobs), ids, jobs.

in_any_case()
local worker, lease, token, limit = ARGV[1], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
seen(worker, ARGV[2], lease, false)
make_due(NOW)

-- What waits: for each type the line of fresh jobs and that of jobs that came back.
local lines = {}
for k = 6, #ARGV do
  local ty = ARGV[k]
  if call('EXISTS', P .. 'fresh:' .. ty) == 1 then lines[#lines + 1] = { ty = ty, key = P .. 'fresh:' .. ty, is_fresh = true } end
  if call('EXISTS', P .. 'back:' .. ty) == 1 then lines[#lines + 1] = { ty = ty, key = P .. 'back:' .. ty } end
end

-- The first n of a line: places and ids.
local function look(line, n)
  local places, ids = {}, {}
  if line.is_fresh then
    for j, entry in ipairs(call('LRANGE', line.key, 0, n - 1)) do places[j], ids[j] = place_of(entry), id_of(entry) end
  else
    local entries = call('ZRANGE', line.key, 0, n - 1, 'WITHSCORES')
    for j = 1, #entries / 2 do places[j], ids[j] = tonumber(entries[2 * j]), entries[2 * j - 1] end
  end
  return places, ids
end

-- Takes the first n, which are known when they have been looked at.
local function pop(line, n, ids)
  if line.is_fresh then return call('LPOP', line.key, n) end
  many('ZREM', line.key, ids)
end

local out, started, n_started = { -1 }, {}, 0
local voids = tonumber(call('GET', P .. 'void') or 0)
-- Is what stands at the head of the line a job that waits, as far as this call can tell?
local function has_ready_head(line) return voids == 0 or not line.is_fresh or drop_voids(line.key) end

-- Leases jobs that have just left their line. Answers are put together in whole lists, because whatever is done for each
-- job is done a hundred thousand times a second.
local function start_fresh(ty, tickets)
  local ids, n = {}, #tickets
  for j = 1, n do ids[j] = sub(tickets[j], 8) end
  local frames = read_all(JOB, ids)
  local has_gaps = voids > 0
  -- A void ticket (33 is "!") is looked for also when the count of them is gone.
  for j = 1, n do has_gaps = has_gaps or not frames[j] or string.byte(frames[j]) == 33 end
  if has_gaps then
    local valid_ids, valid_frames, valid = {}, {}, 0
    for j = 1, n do
      if frames[j] and tonumber(sub(frames[j], 1, 16)) == place_of(tickets[j]) then
        valid = valid + 1
        valid_ids[valid], valid_frames[valid] = ids[j], frames[j]
      end
    end
    were_void(n - valid)
    ids, frames, n = valid_ids, valid_frames, valid
  end
  local plain, line_end = token .. ' - ' .. ty .. ' ' .. NOW .. ' 1 0 0', 18 + #ty
  for j = 1, n do
    local frame = frames[j]
    started[n_started + 1] = ids[j]
    if string.byte(frame, line_end) == 10 then
      started[n_started + 2] = plain
    else
      started[n_started + 2] = token .. ' ' .. match(frame, '^%d+ %S+ (%-%a*)') .. ' ' .. ty .. ' ' .. NOW .. ' 1 0 0'
    end
    n_started = n_started + 2
  end
  out[#out + 1] = 1
  out[#out + 1] = '0'
  out[#out + 1] = ids
  out[#out + 1] = frames
  count('ready', ty, -n)
  count('running', ty, n)
  return n
end

local function start_back(ty, ids)
  local frames, records = read_all(JOB, ids), read_all(STATE, ids)
  local n = 0
  for j, id in ipairs(ids) do
    if frames[j] and records[j] then
      local r = record(records[j])
      r.attempt, r.started = r.attempt + 1, NOW
      n = n + 1
      started[n_started + 1] = id
      started[n_started + 2] = token .. tail(r)
      n_started = n_started + 2
      out[#out + 1] = r.attempt
      out[#out + 1] = r.place
      out[#out + 1] = { id }
      out[#out + 1] = { frames[j] }
    end
  end
  many('HDEL', STATE, ids)
  count('ready', ty, -#ids)
  count('running', ty, n)
  return n
end

while limit > 0 and #lines == 1 do
  -- The usual case needs no look ahead.
  local line = lines[1]
  if not has_ready_head(line) then break end
  if line.is_fresh then
    local tickets = call('LPOP', line.key, limit)
    if not tickets then break end
    limit = limit - start_fresh(line.ty, tickets)
  else
    local _, ids = look(line, limit)
    if #ids == 0 then break end
    pop(line, #ids, ids)
    limit = limit - start_back(line.ty, ids)
  end
end
while limit > 0 and #lines > 1 do
  -- The same number from each; what comes after the earliest end of these is not known yet.
  local n = math.max(math.ceil(2 * limit / #lines), 8)
  local found, open, known = {}, {}, nil
  for _, line in ipairs(lines) do
    if not has_ready_head(line) then limit = 0 end
  end
  if limit == 0 then break end
  for _, line in ipairs(lines) do
    line.places, line.ids = look(line, n)
    line.taken = 0
    if #line.ids > 0 then open[#open + 1] = line end
    if #line.ids == n and (not known or line.places[n] < known) then known = line.places[n] end
    for j, place in ipairs(line.places) do found[#found + 1] = { place, line, j } end
  end
  lines = open
  if #found == 0 then break end
  table.sort(found, function(a, b) return a[1] < b[1] end)
  local taken = 0
  for _, entry in ipairs(found) do
    if taken == limit or (known and entry[1] > known) then break end
    taken = taken + 1
    entry[2].taken = entry[2].taken + 1
  end
  -- Line by line, because that is less work; the client puts the jobs in the order of their places.
  for _, line in ipairs(lines) do
    if line.taken > 0 then
      local ids = line.taken < #line.ids and { unpack(line.ids, 1, line.taken) } or line.ids
      local tickets = pop(line, line.taken, ids)
      limit = limit - (line.is_fresh and start_fresh(line.ty, tickets) or start_back(line.ty, ids))
    end
  end
end

if n_started > 0 then
  many('HSET', P .. 'run:' .. worker, started)
  for _, line in ipairs(lines) do
    if call('EXISTS', line.key) == 1 then wake(line.ty) end
  end
end
local next_due = call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
if next_due then out[1] = int(math.max(0, next_due - now)) end
if voids_left <= 0 then out[1] = 0 end
write_counts()
return out
