-- A part of those jobs that a filter lets through. Nothing is left out that was there the whole time.
--
-- ARGV: where to look ("job", "due", "failed", "finished" or "running"), cursor, how many to look at, state or '', type
-- or '', latest place or '' (for jobs enqueued before), id after which or ''.
-- Returns the next cursor, '0' when there is no more; how many bytes of jobs that was; and ids.

in_any_case()
make_due(NOW)
local where, cursor, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local state, ty, newest, after = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local ids, frames = {}, nil
if where == 'job' then
  local part = call('HSCAN', JOB, cursor, 'COUNT', most)
  cursor, frames = part[1], {}
  for j = 1, #part[2], 2 do
    ids[#ids + 1] = part[2][j]
    frames[#frames + 1] = part[2][j + 1]
  end
elseif where == 'running' then
  cursor = '0'
  for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
    for _, id in ipairs(call('HKEYS', P .. 'run:' .. worker)) do ids[#ids + 1] = id end
  end
else
  local first = tonumber(cursor)
  local part = where == 'finished' and call('LRANGE', P .. where, first, first + most - 1)
    or call('ZRANGE', P .. where, first, first + most - 1)
  for j, entry in ipairs(part) do ids[j] = sub(entry, 1, 16) end
  cursor = #part == most and int(first + most) or '0'
end

-- Ids are compared byte by byte: Lua would ask the locale.
local function is_after(id)
  if after == '' then return true end
  for j = 1, 16 do
    local a, b = string.byte(id, j), string.byte(after, j)
    if a ~= b then return a > b end
  end
  return false
end

frames = frames or read_all(JOB, ids)
local records = read_all(STATE, ids)
-- Without a record a job runs, or waits for the first time.
local running, unknown = {}, {}
for j, id in ipairs(ids) do
  if not records[j] then unknown[#unknown + 1] = id end
end
for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
  for j, held in ipairs(read_all(P .. 'run:' .. worker, unknown)) do
    if held then running[unknown[j]] = true end
  end
end
local out, size = { cursor, 0 }, 0
for j, id in ipairs(ids) do
  if frames[j] then
    size = size + #frames[j]
    local place, its = match(frames[j], '^!?(%d+) (%S+)')
    local is = records[j] and match(records[j], '^%l+') or running[id] and 'running' or 'ready'
    if (state == '' or is == state) and (ty == '' or its == ty) and (newest == '' or tonumber(place) < tonumber(newest))
      and is_after(id) then
      out[#out + 1] = id
    end
  end
end
out[2] = size
return out
