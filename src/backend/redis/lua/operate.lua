-- What operators do with one job.
--
-- ARGV: finish, cancel or requeue; id; jobs to keep when finished, when failed.
-- Returns one word and what it is about: "done"; "unknown"; "state" with the state that is in the way; "overtaken" with
-- the later job of its chain that has started, or ''; "held" with the job that has its unique key.

in_any_case()
make_due(NOW)
local op, id = ARGV[1], ARGV[2]
local r, frame, worker = find(id)
if not r then return { 'unknown', '' } end

-- Out of the state in which it was found.
local function leave()
  if worker then
    call('HDEL', P .. 'run:' .. worker, id)
    count('running', r.ty, -1)
  else
    take_out(id, r, frame)
  end
end

local function requeue()
  if r.state == 'finished' or r.state == 'ready' or r.state == 'blocked' then return { 'state', r.state } end
  local h = head(frame)
  local member, overtaken = nil, 0
  if h.chain then member, overtaken = members_of(h.chain) end
  local followers = {}
  for position = h.position + 1, h.length do
    local other, other_frame = find(member(position))
    if other then
      if other.state == 'running' or has_started(other) then return { 'overtaken', uuid(member(position)) } end
      followers[#followers + 1] = { member(position), other, other_frame }
    end
  end
  if overtaken > h.position then return { 'overtaken', '' } end
  local holder = h.unique and call('HGET', P .. 'unique', h.ty .. ' ' .. h.unique)
  if holder and holder ~= id then return { 'held', uuid(holder) } end

  -- What ended the rest of the chain: this job, or the one that this job was cancelled with.
  local cause = r.with ~= '' and r.with or hex(id)
  for _, follower in ipairs(followers) do
    local other_id, other, other_frame = unpack(follower)
    local was_cancelled_with_it = other.with == cause
    if was_cancelled_with_it or other.state == 'ready' or other.state == 'scheduled' then
      take_out(other_id, other, other_frame)
      if was_cancelled_with_it then
        call('HDEL', P .. 'failure', other_id)
        clear(other, 'f')
        other.with = ''
      end
      other.started = '0'
      write_record(other_id, other, 'blocked')
    end
  end
  leave()
  if has_started(r) then set(r, 'h') end
  clear(r, 'x')
  r.started, r.attempt, r.rescues, r.with = '0', 0, 0, ''
  if h.unique then call('HSET', P .. 'unique', h.ty .. ' ' .. h.unique, id) end
  if h.chain and is_held_up(h) then
    write_record(id, r, 'blocked')
  else
    put_off(id, r, 0)
  end
  return { 'done', '' }
end

local function cancel()
  if FINAL[r.state] then return { 'state', r.state } end
  if worker then
    set(r, 'x')
    call('HSET', P .. 'run:' .. worker, id, r.token .. tail(r))
    return { 'done', '' }
  end
  leave()
  close_and_release(id, r, 'cancelled', BY_OPERATOR, frame)
  return { 'done', '' }
end

local function finish()
  if FINAL[r.state] then return { 'state', r.state } end
  leave()
  clear(r, 'x')
  close_and_release(id, r, 'finished', nil, frame)
  return { 'done', '' }
end

local answer = ({ requeue = requeue, cancel = cancel, finish = finish })[op]()
write_ends(tonumber(ARGV[3]), tonumber(ARGV[4]))
write_counts()
return answer
