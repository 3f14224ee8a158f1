-- Forgets jobs that became final long enough ago, those that finished first.
--
-- ARGV: age, most jobs. Returns how many.

in_any_case()
local newest, most = now - tonumber(ARGV[1]), math.min(tonumber(ARGV[2]), MOST)
local entries = call('LRANGE', P .. 'finished', 0, most - 1)
local ids = {}
for j, entry in ipairs(entries) do ids[j] = sub(entry, 1, 16) end
local old = {}
for j, text in ipairs(read_all(STATE, ids)) do
  if text and record(text).moment > newest then break end
  old[j] = entries[j]
end
if #old > 0 then call('LTRIM', P .. 'finished', #old, -1) end
if #old < most then
  local failed = call('ZRANGEBYSCORE', P .. 'failed', '-inf', int(newest), 'LIMIT', 0, most - #old)
  many('ZREM', P .. 'failed', failed)
  for _, id in ipairs(failed) do old[#old + 1] = id .. 'f' end
end
forget(old)
return #old
