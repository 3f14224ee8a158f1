-- running -> finished, failed, cancelled, ready or scheduled; and the next job of its chain, if that is ready at once
-- and of a type that the worker takes, -> running.
--
-- ARGV: worker, jobs to keep when finished, when failed, token for next jobs, number of types, these types, then
--   'f', token, n, n ids                                 the handler returned
--   'e', token, id, code, delay, failure (JSON or '')     another end
-- with code: failed, cancelled, retry, interrupted or unstarted.
-- Returns two lists: the stale leases, by their number in the call from 1; and of each next job its id, the number of
-- the job before, attempt and job.

in_any_case()
local RUN = P .. 'run:' .. ARGV[1]
local keep_finished, keep_failed, token_of_next = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local takes = {}
for k = 6, 5 + ARGV[5] do takes[ARGV[k]] = true end
local lost, following, gone, states, number = {}, {}, {}, {}, 0

-- So many attempts, begun at this time, have ended. Durations are counted by powers of two of a microsecond.
local function took(started, n)
  local duration = math.max(now - started, 0)
  local _, power = math.frexp(duration)
  add(totals, 'attempts', n)
  add(totals, 'duration', n * duration)
  add(totals, 'took ' .. power, n)
end

-- The job of a chain that nothing holds up any more.
local function go_on(before, id, r)
  if not id then return end
  local frame = frame_of(id)
  if not frame or not takes[r.ty] or head(frame).delay > 0 then return release(id, r) end
  r.attempt, r.started = r.attempt + 1, NOW
  r.place = r.place == '0' and match(frame, '^!?(%d+)') or r.place
  call('HDEL', STATE, id)
  call('HSET', RUN, id, token_of_next .. tail(r))
  count('running', r.ty, 1)
  for _, value in ipairs({ id, before, r.attempt, frame }) do following[#following + 1] = value end
end

-- Jobs of one claim have the same record, but for a few: what can be said of it is said once.
local function finish(token, ids)
  local prefix, alike = token .. ' ', {}
  local records, n_gone, n_states, n_ended = read_all(RUN, ids), #gone, #states, #ended
  for j = 1, #ids do
    local text, id = records[j], ids[j]
    local kind = alike[text]
    if not kind then
      kind = { n = 0 }
      alike[text] = kind
      if not text or sub(text, 1, #prefix) ~= prefix then
        kind.is_lost = true
      else
        kind.flags, kind.ty, kind.started = match(text, '^(%S+) (%S+) (%d+)', #prefix + 1)
        kind.final = kind.flags == '-' and 'finished ' .. NOW .. sub(text, #prefix)
      end
    end
    number = number + 1
    kind.n = kind.n + 1
    if kind.is_lost then
      lost[#lost + 1] = number
    else
      n_gone = n_gone + 1
      gone[n_gone] = id
      if kind.final then
        n_ended = n_ended + 1
        ended[n_ended] = id
        if keep_finished > 0 then
          states[n_states + 1], states[n_states + 2] = id, kind.final
          n_states = n_states + 2
        end
      else
        local r = record(text)
        if has(r, 'f') then
          call('HDEL', P .. 'failure', id)
          clear(r, 'f')
        end
        clear(r, 'x')
        go_on(number, close(id, r, 'finished', nil))
        n_ended = #ended
      end
    end
  end
  for _, kind in pairs(alike) do
    if not kind.is_lost then
      took(kind.started, kind.n)
      count('running', kind.ty, -kind.n)
      if kind.final then count('finished', kind.ty, kind.n) end
    end
  end
end

local function end_otherwise(id, r, code, delay, failure)
  if code == 'unstarted' then return give_back(id, r) end
  count('running', r.ty, -1)
  if code ~= 'interrupted' then took(r.started, 1) end
  local is_wanted = has(r, 'x')
  clear(r, 'x')
  failure = failure ~= '' and failure or nil
  if code == 'failed' or code == 'retry' then add(totals, 'failures', 1) end
  if code == 'failed' then return go_on(number, close(id, r, 'failed', failure)) end
  if code == 'cancelled' or is_wanted then
    return go_on(number, close(id, r, 'cancelled', failure or BY_OPERATOR))
  end
  if code == 'retry' then
    add(totals, 'retries', 1)
    write_failure(id, r, failure)
    return put_off(id, r, delay)
  end
  -- Interrupted: it goes back to its old place, and the attempt does not count.
  r.attempt = r.attempt - 1
  set(r, 'h')
  put_in_line(id, r)
end

local k = 6 + ARGV[5]
while k <= #ARGV do
  local token = ARGV[k + 1]
  if ARGV[k] == 'f' then
    local n, ids = tonumber(ARGV[k + 2]), {}
    for j = 1, n do ids[j] = ARGV[k + 2 + j] end
    finish(token, ids)
    k = k + 3 + n
  else
    local id = ARGV[k + 2]
    number = number + 1
    local text = call('HGET', RUN, id)
    if text and sub(text, 1, #token + 1) == token .. ' ' then
      call('HDEL', RUN, id)
      end_otherwise(id, record(text), ARGV[k + 3], tonumber(ARGV[k + 4]), ARGV[k + 5])
    else
      lost[#lost + 1] = number
    end
    k = k + 6
  end
end
many('HDEL', RUN, gone)
many('HSET', STATE, states)
write_ends(keep_finished, keep_failed)
write_counts()
return { lost, following }
