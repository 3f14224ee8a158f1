-- running, of workers that have not beaten for a lease -> ready at its old place, or failed as "worker lost".
--
-- ARGV: lease of the caller, most rescues of a job, jobs to keep when finished, when failed.
-- Returns how many jobs went back, and how many failed.

in_any_case()
local since = tick(tonumber(ARGV[1]))
local most = tonumber(ARGV[2])
local requeued, failed = 0, 0

local function rescue(id, r)
  count('running', r.ty, -1)
  if has(r, 'x') then
    clear(r, 'x')
    local why = 'cancelled by an operator; its worker was lost meanwhile'
    close_and_release(id, r, 'cancelled', failure_json('cancelled', why))
  elseif r.rescues < most then
    r.rescues, r.attempt = r.rescues + 1, r.attempt - 1
    set(r, 'h')
    put_in_line(id, r)
    requeued = requeued + 1
    add(totals, 'rescues', 1)
  else
    local why = 'its lease ran out ' .. (r.rescues + 1) .. ' times'
    close_and_release(id, r, 'failed', failure_json('worker lost', why))
    failed = failed + 1
    add(totals, 'failures', 1)
  end
end

for _, worker in ipairs(call('ZRANGEBYSCORE', P .. 'workers', '-inf', '(' .. NOW)) do
  local lease = tonumber(match(call('HGET', P .. 'worker', worker) or '', '^(%d+)') or ARGV[1])
  if now - since >= lease / 3 then
    local key, is_empty = P .. 'run:' .. worker, true
    local held = call('HGETALL', key)
    for j = 1, #held, 2 do
      local r = record(held[j + 1])
      if r.started + lease < now then
        call('HDEL', key, held[j])
        rescue(held[j], r)
      else
        -- Claimed since its last beat: the job has a lease of its own.
        is_empty = false
      end
    end
    if is_empty then
      call('ZREM', P .. 'workers', worker)
      call('HDEL', P .. 'worker', worker)
    end
  end
end
write_ends(tonumber(ARGV[3]), tonumber(ARGV[4]))
write_counts()
return { requeued, failed }
