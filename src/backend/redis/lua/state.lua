-- How jobs go from state to state, for the scripts that do this; base.lua comes before it.

-- ---- records ---------------------------------------------------------------------------------------------------

-- In `state`: "<state> <moment> <flags> <type> <started> <attempt> <rescues> <place>[ <id of what cancelled it>]".
-- In `run:<worker>`: "<token> <flags> <type> <started> <attempt> <rescues> <place>". A place of 0 is that of the job.
local function record(text)
  local head, flags, ty, started, attempt, rescues, place, with =
    match(text, '^(.-) (%-%a*) (%S+) (%d+) (%d+) (%d+) (%d+) ?(%S*)$')
  local state, moment = match(head, '^(%l+) (%d+)$')
  return { state = state or 'running', moment = tonumber(moment or 0), token = not state and head or nil, flags = flags,
    ty = ty, started = started, attempt = tonumber(attempt), rescues = tonumber(rescues), place = place, with = with }
end

local function tail(r)
  return ' ' .. r.flags .. ' ' .. r.ty .. ' ' .. r.started .. ' ' .. r.attempt .. ' ' .. r.rescues .. ' ' .. r.place
end

local function has(r, flag) return string.find(r.flags, flag, 1, true) ~= nil end
local function set(r, flag) if not has(r, flag) then r.flags = r.flags .. flag end end
local function clear(r, flag) r.flags = string.gsub(r.flags, flag, '') end
local function has_started(r) return r.attempt > 0 or has(r, 'h') end
local FINAL = { finished = true, failed = true, cancelled = true }

-- The head of a job: "<place> <type>[ <flags> <options>][ {json}]", before the line end and the body.
local function head(frame)
  local place, ty, options = match(frame, '^!?(%d+) (%S+)([^\n]*)')
  local plain, json = match(options, '^([^{]*)(.*)$')
  local h = { place = place, ty = ty, flags = match(plain, '^ (%-%a*)') or '-' }
  h.chain, h.position, h.length, h.cancels = match(plain, ' c=(%x+):(%d+):(%d+)(x?)')
  h.position, h.length, h.cancels = tonumber(h.position or 1), tonumber(h.length or 1), h.cancels == 'x'
  h.delay = tonumber(match(plain, ' d=(%d+)') or 0)
  h.unique = json ~= '' and cjson.decode(json).unique or nil
  return h
end

local function frame_of(id) return call('HGET', JOB, id) end

-- A job that waits in `fresh` and was never anything else has no record but its place in line.
local function fresh(h)
  return { state = 'ready', moment = 0, flags = h.flags, ty = h.ty, started = '0', attempt = 0, rescues = 0,
    place = h.place, with = '', is_fresh = true }
end

local function write_record(id, r, state, moment)
  local with = r.with ~= '' and r.with ~= nil and ' ' .. r.with or ''
  call('HSET', STATE, id, state .. ' ' .. int(moment or 0) .. tail(r) .. with)
  count(state, r.ty, 1)
end

local function hex(id) return (string.gsub(id, '.', function(c) return format('%02x', string.byte(c)) end)) end
local function uuid(id) return (string.gsub(hex(id), '^(%w%w%w%w%w%w%w%w)(%w%w%w%w)(%w%w%w%w)(%w%w%w%w)', '%1-%2-%3-%4-')) end

-- ---- from state to state ---------------------------------------------------------------------------------------

-- -> ready, at its place.
local function put_in_line(id, r)
  if r.place == '0' then
    r.place = match(frame_of(id) or '', '^!?(%d+)')
    -- Deleted by hand: nobody can run it.
    if not r.place then return call('HDEL', STATE, id) end
  end
  write_record(id, r, 'ready')
  call('ZADD', P .. 'back:' .. r.ty, r.place, id)
  wake(r.ty)
end

-- -> scheduled, or ready at the end of the line.
local function put_off(id, r, delay)
  if delay == 0 then
    r.place = int(take_places(1))
    return put_in_line(id, r)
  end
  local due = math.min(now + delay, NEVER)
  write_record(id, r, 'scheduled', due)
  call('ZADD', P .. 'due', int(due), id)
  if call('ZRANK', P .. 'due', id) == 0 then wake(r.ty) end
end

-- scheduled -> ready, those whose time has come, soonest first; returns how many. A call makes only some thousand due,
-- and those left over are due at the next one.
local function make_due(until_)
  local ids = call('ZRANGEBYSCORE', P .. 'due', '-inf', until_, 'LIMIT', 0, MOST)
  if #ids == 0 then return 0 end
  local records = read_all(STATE, ids)
  many('ZREM', P .. 'due', ids)
  local place = take_places(#ids)
  for n, id in ipairs(ids) do
    if records[n] then
      local r = record(records[n])
      count('scheduled', r.ty, -1)
      r.place = int(place + n - 1)
      put_in_line(id, r)
    end
  end
  -- At once: whoever asked for this may find that there is nothing else to do.
  write_counts()
  return #ids
end

-- A job, whatever its state: its record and frame, and the worker if it runs; nil when there is none.
local function find(id)
  local frame = id and frame_of(id)
  if not frame then return nil end
  local text = call('HGET', STATE, id)
  if text then return record(text), frame end
  for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do
    text = call('HGET', P .. 'run:' .. worker, id)
    if text then return record(text), frame, worker end
  end
  return fresh(head(frame)), frame
end

-- Takes a job that does not run out of what says where it is; nothing says what it is afterwards.
local function take_out(id, r, frame)
  count(r.state, r.ty, -1)
  if r.is_fresh then
    -- Its ticket stays in line, and this makes it void.
    if sub(frame, 1, 1) ~= '!' then
      call('HSET', JOB, id, '!' .. frame)
      call('INCR', P .. 'void')
    end
  elseif r.state == 'ready' then
    call('ZREM', P .. 'back:' .. r.ty, id)
  elseif r.state == 'scheduled' then
    call('ZREM', P .. 'due', id)
  elseif r.state ~= 'finished' and FINAL[r.state] then
    call('ZREM', P .. 'failed', id)
  end
end

-- Tickets of jobs that do not wait in `fresh` any more are dropped when they have come to the head of the line, so many in
-- one call, because the server does nothing else meanwhile. Returns whether that were all.
local voids_left = 10000
local VOIDS_AT_ONCE = 500
local function were_void(n)
  -- What was deleted by hand was never counted.
  local known = math.min(n, tonumber(call('GET', P .. 'void') or 0))
  if known > 0 then call('DECRBY', P .. 'void', known) end
end
local function drop_voids(key)
  local most = 1
  while voids_left > 0 do
    local tickets, ids, n = call('LRANGE', key, 0, most - 1), {}, 0
    for j, entry in ipairs(tickets) do ids[j] = id_of(entry) end
    local records = read_all(STATE, ids)
    for j, entry in ipairs(tickets) do
      -- Who has a record does not wait here; a job itself may be large, and is looked at when there is no other way.
      local frame = not records[j] and frame_of(ids[j])
      if frame and tonumber(sub(frame, 1, 16)) == place_of(entry) then break end
      n = n + 1
    end
    if n > 0 then
      call('LTRIM', key, n, -1)
      were_void(n)
    end
    if n < most then return true end
    voids_left, most = voids_left - n, VOIDS_AT_ONCE
  end
  return false
end

-- A job that is gone for good; `entry` is its id and, after it, what flags it had.
local function forget(entries)
  local ids, failures = {}, {}
  for n, entry in ipairs(entries) do
    local id = sub(entry, 1, 16)
    ids[n] = id
    if #entry > 16 then
      local frame, text = frame_of(id), call('HGET', STATE, id)
      local h = frame and head(frame)
      if h and h.chain then
        local left, overtaken, members = match(call('HGET', P .. 'chain', h.chain) or '', '^(%d+) (%d+):(.*)$')
        if left == '1' then
          call('HDEL', P .. 'chain', h.chain)
        elseif left then
          if text and has_started(record(text)) then overtaken = math.max(tonumber(overtaken), h.position) end
          call('HSET', P .. 'chain', h.chain, int(left - 1) .. ' ' .. int(overtaken) .. ':' .. members)
        end
      end
      failures[#failures + 1] = id
    end
  end
  many('HDEL', JOB, ids)
  many('HDEL', STATE, ids)
  many('HDEL', P .. 'failure', failures)
end

-- Final jobs of this call, to be kept for a while: those that finished; and are there others?
local ended, has_failed = {}, false
local function write_ends(keep_finished, keep_failed)
  if #ended > 0 then
    if keep_finished == 0 then
      forget(ended)
    else
      many('RPUSH', P .. 'finished', ended)
      local over = call('LLEN', P .. 'finished') - keep_finished
      if over > 0 then forget(call('LPOP', P .. 'finished', over)) end
    end
  end
  if has_failed then
    local over = call('ZCARD', P .. 'failed') - keep_failed
    if over > 0 then
      local ids = call('ZRANGE', P .. 'failed', 0, math.min(over, MOST) - 1)
      many('ZREM', P .. 'failed', ids)
      for n, id in ipairs(ids) do ids[n] = id .. 'f' end
      forget(ids)
    end
  end
end

local function write_failure(id, r, failure)
  call('HSET', P .. 'failure', id, failure)
  set(r, 'f')
end

-- Out of no state -> final. `failure` is JSON, or nil to leave the one of an earlier attempt.
local function write_end(id, r, state, failure)
  if failure then write_failure(id, r, failure) end
  write_record(id, r, state, now)
  if state == 'finished' then
    ended[#ended + 1] = (has(r, 'c') or has(r, 'f')) and id .. 'c' or id
  else
    call('ZADD', P .. 'failed', NOW, id)
    has_failed = true
  end
end

-- A function that gives the id at a position of a chain, nil when somebody has deleted it; and how far the chain has come.
local function members_of(chain)
  -- Of a long chain only a few are asked for: nothing is taken apart before that.
  local text = call('HGET', P .. 'chain', chain) or ''
  local overtaken, first = match(text, '^%d+ (%d+):()')
  local function member(position) return first and sub(text, first + 16 * position - 16, first + 16 * position - 1) end
  return member, tonumber(overtaken or 0)
end

-- Is a job before it in its chain not final yet?
local function is_held_up(h)
  local member = members_of(h.chain)
  for position = h.position - 1, 1, -1 do
    local before = find(member(position))
    if before and not FINAL[before.state] then return true end
  end
  return false
end

local function failure_json(kind, message) return cjson.encode({ kind = kind, message = message }) end
local BY_OPERATOR = failure_json('cancelled', 'cancelled by an operator')

-- Out of its state -> final, and what that means for its chain and its unique key. Returns the job of its chain that
-- may run now, with its record and head, which the caller puts where it belongs.
local function close(id, r, state, failure, frame)
  local was_blocked = r.state == 'blocked'
  write_end(id, r, state, failure)
  if not has(r, 'c') and not has(r, 'u') then return nil end
  frame = frame or frame_of(id)
  if not frame then return nil end
  local h = head(frame)
  if h.unique then call('HDEL', P .. 'unique', h.ty .. ' ' .. h.unique) end
  if not h.chain or h.position == h.length then return nil end
  local member = members_of(h.chain)
  if state ~= 'finished' and h.cancels then
    local why = failure_json('chain cancelled', 'job ' .. uuid(id) .. ' before it did not finish')
    for position = h.position + 1, h.length do
      local other = member(position)
      local text = other and call('HGET', STATE, other)
      local o = text and record(text)
      if o and o.state == 'blocked' then
        count('blocked', o.ty, -1)
        o.with = hex(id)
        write_end(other, o, 'cancelled', why)
      end
    end
    return nil
  end
  if was_blocked then return nil end
  for position = h.position + 1, h.length do
    local other = member(position)
    if not other then return nil end
    local text = call('HGET', STATE, other)
    if text then
      local o = record(text)
      if o.state == 'blocked' then
        count('blocked', o.ty, -1)
        return other, o
      elseif not FINAL[o.state] then
        return nil
      end
    elseif call('HEXISTS', JOB, other) == 1 then
      return nil
    end
  end
  return nil
end

-- The next job of a chain, which nothing holds up any more -> ready at its place in enqueue order, or scheduled.
local function release(id, r)
  local frame = frame_of(id)
  if not frame then return call('HDEL', STATE, id) end
  local h = head(frame)
  if h.delay > 0 then put_off(id, r, h.delay) else put_in_line(id, r) end
end

-- Out of its state -> final, and the job of its chain that may run now goes on.
local function close_and_release(id, r, state, failure, frame)
  local next_id, next_r = close(id, r, state, failure, frame)
  if next_id then release(next_id, next_r) end
end

-- running -> ready at its old place, as never started; or cancelled, if somebody asked for that meanwhile.
local function give_back(id, r)
  count('running', r.ty, -1)
  r.attempt = r.attempt - 1
  if r.attempt == 0 then r.started = '0' end
  if has(r, 'x') then
    clear(r, 'x')
    close_and_release(id, r, 'cancelled', BY_OPERATOR)
  else
    put_in_line(id, r)
  end
end
