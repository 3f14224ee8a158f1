-- What is known of some jobs; ids that nobody has are left out.
--
-- ARGV: ids. Returns for each: id, job, state, record, last beat of its worker (0 when it does not run), failure or ''.

in_any_case()
make_due(NOW)
local out = {}
for _, id in ipairs(ARGV) do
  local r, frame, worker = find(id)
  if r then
    local beat = 0
    if worker then
      local lease = tonumber(match(call('HGET', P .. 'worker', worker) or '', '^(%d+)') or 0)
      beat = math.max(call('ZSCORE', P .. 'workers', worker) - lease, tonumber(r.started))
    end
    local failure = has(r, 'f') and call('HGET', P .. 'failure', id) or ''
    for _, value in ipairs({ id, frame, r.state, int(r.moment) .. tail(r), int(beat), failure }) do out[#out + 1] = value end
  end
end
return out
