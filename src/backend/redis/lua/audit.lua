-- Looks at a part of the queue for what contradicts the rest of it, and sets that right if told to. A script runs alone, so
-- what is compared, and changed, is of one moment.
--
-- ARGV: 'repair' or ''; the key to look at, without its prefix, or "absent"; then a cursor and how many to look at; or after
-- "absent" a list and ids that should be in it and were not seen there.
-- Returns the next cursor, '0' when there is no more; problems as pairs: a word of audit.rs, and what it is about; jobs as
-- threes: the list they should be in or '', id, "<state> <type>"; ids that are in the list which was looked at; how many
-- void tickets are in it; and how many bytes of jobs were read.

in_any_case()
local repairs, where, cursor, most = ARGV[1] == 'repair', ARGV[2], ARGV[3], tonumber(ARGV[4])
local problems, jobs, present, n_void, size, following = {}, {}, {}, 0, 0, '0'

-- Counts are not touched here: they are compared with all there is at the end of an audit.
local function problem(word, about, repair)
  problems[#problems + 1], problems[#problems + 2] = word, about
  if repairs and repair then repair() end
end
local function about_job(word, id, repair) problem(word, uuid(id), repair) end

local function understood(parse, text)
  local is_fine, parsed = pcall(parse, text)
  return is_fine and parsed or nil
end

-- For each of these ids that a worker has: the workers. Also of workers that nobody would rescue.
local function holders_of(ids)
  local holders, workers = {}, call('HKEYS', P .. 'worker')
  for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
    if call('HEXISTS', P .. 'worker', worker) == 0 then workers[#workers + 1] = worker end
  end
  for _, worker in ipairs(workers) do
    for j, text in ipairs(read_all(P .. 'run:' .. worker, ids)) do
      if text then
        holders[ids[j]] = holders[ids[j]] or {}
        table.insert(holders[ids[j]], { worker = worker, text = text })
      end
    end
  end
  return holders
end

-- ---- one job -------------------------------------------------------------------------------------------------------

-- Of several places, the one of the latest claim counts; and that a job is final counts more than all of them.
local function leave_one(id, r, holders)
  local latest = nil
  for _, holder in ipairs(holders) do
    local its = understood(record, holder.text)
    if its and not (r and FINAL[r.state]) and (not latest or tonumber(its.started) > latest.started) then
      latest = { worker = holder.worker, started = tonumber(its.started) }
    end
  end
  for _, holder in ipairs(holders) do
    if not latest or holder.worker ~= latest.worker then call('HDEL', P .. 'run:' .. holder.worker, id) end
  end
  if r and latest then
    call('HDEL', STATE, id)
    call('ZREM', P .. 'back:' .. r.ty, id)
    call('ZREM', P .. 'due', id)
  end
end

local function look_at_key(id, h)
  local field = h.ty .. ' ' .. h.unique
  local holder = call('HGET', P .. 'unique', field)
  if not holder then
    about_job('key free', id, function() call('HSET', P .. 'unique', field, id) end)
  elseif holder ~= id then
    about_job('key taken', id)
  end
end

-- The key that a job of this state must be in, with its score there; nil for those that are in no sorted set.
local function place_of_record(r, h)
  if r.state == 'ready' then return 'back:' .. r.ty, r.place == '0' and h.place or r.place end
  if r.state == 'scheduled' then return 'due', int(r.moment) end
  if r.state == 'failed' or r.state == 'cancelled' then return 'failed', int(r.moment) end
end

local function look_at_record(id, r, h)
  local key, score = place_of_record(r, h)
  if key and not call('ZSCORE', P .. key, id) then
    about_job(FINAL[r.state] and 'unkept' or 'nowhere', id, function()
      call('ZADD', P .. key, score, id)
      wake(r.ty)
    end)
  elseif r.state == 'blocked' and not (h.chain and call('HEXISTS', P .. 'chain', h.chain) == 1) then
    about_job('chainless', id)
  elseif r.state == 'blocked' and not is_held_up(h) then
    about_job('stuck', id, function() release(id, r) end)
  end
  return r.state == 'finished' and 'finished' or ''
end

local function look_at_job(id, frame, text, holders)
  local h, r = understood(head, frame), text and understood(record, text)
  if #id ~= 16 or not (h and h.place and string.find(frame, '\n', 1, true)) or (text and not r) then
    for _, value in ipairs({ '', id, 'unreadable ?' }) do jobs[#jobs + 1] = value end
    return problem('unreadable', 'job ' .. (#id == 16 and uuid(id) or id))
  end
  local list, state = '', 'running'
  if #holders + (r and 1 or 0) > 1 then
    about_job('twice', id, function() leave_one(id, r, holders) end)
  elseif r then
    list, state = look_at_record(id, r, h), r.state
  elseif #holders == 0 then
    -- Whether it is in line, or in what its ticket being void stands for, takes a look through the line.
    list, state = 'fresh:' .. h.ty, 'ready'
  end
  if h.unique and not FINAL[state] then look_at_key(id, h) end
  for _, value in ipairs({ list, id, state .. ' ' .. h.ty }) do jobs[#jobs + 1] = value end
end

-- A job that has no state and no worker, and is not in line. What else knows of it says what it was; otherwise it waits.
local function put_back(id, h)
  local r = fresh(h)
  local due, back = call('ZSCORE', P .. 'due', id), call('ZSCORE', P .. 'back:' .. h.ty, id)
  local failed = call('ZSCORE', P .. 'failed', id)
  local has_finished = call('LPOS', P .. 'finished', id) or call('LPOS', P .. 'finished', id .. 'c')
  if failed or has_finished then
    local field = h.unique and h.ty .. ' ' .. h.unique
    if field and call('HGET', P .. 'unique', field) == id then call('HDEL', P .. 'unique', field) end
    return write_record(id, r, failed and 'failed' or 'finished', tonumber(failed or now))
  end
  if h.chain and h.position > 1 and is_held_up(h) then return write_record(id, r, 'blocked') end
  local time = due and tonumber(due) or (not back and h.position == 1 and h.place + h.delay) or 0
  if time > now then
    write_record(id, r, 'scheduled', time)
    call('ZADD', P .. 'due', int(time), id)
  else
    call('ZREM', P .. 'due', id)
    put_in_line(id, r)
  end
end

local function look_for_absent(list, ids)
  local records, holders = read_all(STATE, ids), holders_of(ids)
  for j, id in ipairs(ids) do
    local frame = frame_of(id)
    local h = frame and understood(head, frame)
    if not h then
      -- Gone meanwhile.
    elseif list == 'finished' then
      local r = records[j] and understood(record, records[j])
      local is_there = call('LPOS', P .. list, id) or call('LPOS', P .. list, id .. 'c')
      if r and r.state == 'finished' and not is_there then
        about_job('unkept', id, function() call('RPUSH', P .. list, id .. 'c') end)
      end
    elseif not records[j] and not holders[id] then
      local is_void = sub(frame, 1, 1) == '!'
      if is_void or not call('LPOS', P .. list, ticket(tonumber(h.place), id)) then
        about_job('nowhere', id, function() put_back(id, h) end)
      end
    end
  end
end

-- ---- everything else, and whether there is a job to it -----------------------------------------------------------------

local function leftover(key, what, repair) problem('leftover', key .. ' ' .. what, repair) end

local function look_at_state(id, _)
  if call('HEXISTS', JOB, id) == 1 then return end
  leftover('state', #id == 16 and uuid(id) or id, function()
    local r = understood(record, call('HGET', STATE, id))
    if r then call('ZREM', P .. 'back:' .. r.ty, id) end
    call('ZREM', P .. 'due', id)
    call('ZREM', P .. 'failed', id)
    call('HDEL', P .. 'failure', id)
    call('HDEL', STATE, id)
  end)
end

-- A job without a state is not looked at: it may be this entry from which it is learned.
local function is_elsewhere(id, is_here)
  local text = call('HGET', STATE, id)
  if text then
    local r = understood(record, text)
    return r and not is_here(r)
  end
  return call('HEXISTS', JOB, id) == 0 or holders_of({ id })[id]
end

local function look_at_failure(id, _)
  if call('HEXISTS', JOB, id) == 0 then leftover(where, uuid(id), function() call('HDEL', P .. where, id) end) end
end

local function look_at_unique(field, id)
  local r, frame = find(id)
  local h = r and understood(head, frame)
  if not h or FINAL[r.state] or h.ty .. ' ' .. (h.unique or '') ~= field then
    problem('key held', field, function() call('HDEL', P .. where, field) end)
  end
end

local function look_at_chain(chain, text)
  local left, overtaken, members = match(text, '^(%d+) (%d+):(.*)$')
  if not left then return problem('unreadable', 'chain ' .. chain) end
  local n = 0
  for first = 1, #members, 16 do n = n + call('HEXISTS', JOB, sub(members, first, first + 15)) end
  if n == tonumber(left) then return end
  problem('chain', chain, function()
    if n == 0 then
      call('HDEL', P .. where, chain)
    else
      call('HSET', P .. where, chain, n .. ' ' .. overtaken .. ':' .. members)
    end
  end)
end

local function look_at_workers()
  for _, worker in ipairs(call('HKEYS', P .. 'worker')) do
    if not call('ZSCORE', P .. 'workers', worker) then
      if call('EXISTS', P .. 'run:' .. worker) == 1 then
        -- As one whose lease has run out.
        problem('worker', worker, function() call('ZADD', P .. 'workers', 0, worker) end)
      else
        leftover('worker', worker, function() call('HDEL', P .. 'worker', worker) end)
      end
    end
    for _, id in ipairs(call('HKEYS', P .. 'run:' .. worker)) do
      if call('HEXISTS', JOB, id) == 0 then
        leftover('run:' .. worker, uuid(id), function() call('HDEL', P .. 'run:' .. worker, id) end)
      end
    end
  end
end

-- ---- ways through a key: nothing is left out that was there the whole time -------------------------------------------------

local function scan(command, look)
  local part = call(command, P .. where, cursor, 'COUNT', most)
  following = part[1]
  for j = 1, #part[2], 2 do look(part[2][j], part[2][j + 1]) end
end

local function scan_jobs()
  local ids, frames = {}, {}
  scan('HSCAN', function(id, frame)
    ids[#ids + 1], frames[#frames + 1] = id, frame
    size = size + #frame
  end)
  local records, holders = read_all(STATE, ids), holders_of(ids)
  for j, id in ipairs(ids) do look_at_job(id, frames[j], records[j] or nil, holders[id] or {}) end
end

local function scan_set(is_here)
  scan('ZSCAN', function(id)
    if is_elsewhere(id, is_here) then leftover(where, uuid(id), function() call('ZREM', P .. where, id) end) end
  end)
end

-- From the end of a list to its head: what joins it or leaves it meanwhile makes some entries come twice.
local function walk(look)
  local seen_ = tonumber(cursor)
  local entries = call('LRANGE', P .. where, -seen_ - most, -seen_ - 1)
  if #entries == most then following = int(seen_ + most) end
  look(entries)
end

local function look_at_finished(entries)
  for _, entry in ipairs(entries) do
    local id = sub(entry, 1, 16)
    if #id ~= 16 or is_elsewhere(id, function(r) return r.state == 'finished' end) then
      leftover(where, uuid(id), function() call('LREM', P .. where, 1, entry) end)
    else
      present[#present + 1] = id
    end
  end
end

local function look_at_tickets(entries)
  local ids = {}
  for j, entry in ipairs(entries) do ids[j] = sub(entry, 8) end
  local frames, records, holders = read_all(JOB, ids), read_all(STATE, ids), holders_of(ids)
  for j, entry in ipairs(entries) do
    local id, frame = ids[j], frames[j]
    size = size + #(frame or '')
    if #entry ~= 23 then
      leftover(where, 'an entry of ' .. #entry .. ' bytes', function() call('LREM', P .. where, 1, entry) end)
    elseif frame and tonumber(sub(frame, 1, 16)) == place_of(entry) then
      present[#present + 1] = id
      if records[j] or holders[id] then
        about_job('twice', id, function()
          call('HSET', JOB, id, '!' .. frame)
          call('INCR', P .. 'void')
        end)
      end
    else
      n_void = n_void + 1
    end
  end
end

if where == 'absent' then
  local ids = {}
  for k = 4, #ARGV do ids[k - 3] = ARGV[k] end
  look_for_absent(ARGV[3], ids)
elseif where == 'job' then
  scan_jobs()
elseif where == 'state' then
  scan('HSCAN', look_at_state)
elseif where == 'failure' then
  scan('HSCAN', look_at_failure)
elseif where == 'unique' then
  scan('HSCAN', look_at_unique)
elseif where == 'chain' then
  scan('HSCAN', look_at_chain)
elseif where == 'worker' then
  look_at_workers()
elseif where == 'due' then
  scan_set(function(r) return r.state == 'scheduled' end)
elseif where == 'failed' then
  scan_set(function(r) return r.state == 'failed' or r.state == 'cancelled' end)
elseif where == 'finished' then
  walk(look_at_finished)
elseif sub(where, 1, 5) == 'back:' then
  scan_set(function(r) return r.state == 'ready' and r.ty == sub(where, 6) end)
elseif sub(where, 1, 6) == 'fresh:' then
  walk(look_at_tickets)
end
return { following, problems, jobs, present, n_void, size }
