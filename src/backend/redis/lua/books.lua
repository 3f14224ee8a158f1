-- Compares the counts with what there is.
--
-- ARGV: 'sums', for a look at the sums of all types. Returns how many jobs there are, all counts as pairs, and what differs
-- as threes: a state or 'jobs', how many are counted, how many there are.
-- ARGV: 'compare' or 'repair' after a look at each job; a number, so many values (the counts as they were before it), and
-- how many void tickets there are, and pairs: "<state> <type>", how many there are. Returns threes as above, with a type; or
-- 0 when jobs came or went meanwhile.

in_any_case()
local counted = call('HGETALL', COUNT)
local COMPARED = { ready = true, scheduled = true, running = true, blocked = true }
local out = {}
local function differs(what, n_counted, n_there)
  if n_counted ~= n_there then
    for _, value in ipairs({ what, n_counted, n_there }) do out[#out + 1] = value end
    return true
  end
end

if ARGV[1] == 'sums' then
  local sums, in_line, back = {}, 0, 0
  for j = 1, #counted, 2 do
    local state, ty = match(counted[j], '^(%l+) (.+)$')
    add(sums, state, tonumber(counted[j + 1]))
    if state == 'ready' then
      in_line = in_line + call('LLEN', P .. 'fresh:' .. ty)
      back = back + call('ZCARD', P .. 'back:' .. ty)
    end
  end
  in_line = in_line - (call('GET', P .. 'void') or 0)
  local running = 0
  for _, worker in ipairs(call('ZRANGE', P .. 'workers', 0, -1)) do running = running + call('HLEN', P .. 'run:' .. worker) end
  local due, states = call('ZCARD', P .. 'due'), call('HLEN', STATE)
  local final = call('ZCARD', P .. 'failed') + call('LLEN', P .. 'finished')
  differs('ready', sums.ready or 0, in_line + back)
  differs('scheduled', sums.scheduled or 0, due)
  differs('running', sums.running or 0, running)
  differs('blocked', sums.blocked or 0, states - due - back - final)
  differs('jobs', call('HLEN', JOB), states + running + in_line)
  return { call('HLEN', JOB), counted, out }
end

local n, there, all = tonumber(ARGV[2]), {}, 0
local has_moved = n ~= #counted
for j = 1, #counted do has_moved = has_moved or ARGV[2 + j] ~= counted[j] end
for k = 4 + n, #ARGV, 2 do
  there[ARGV[k]] = tonumber(ARGV[k + 1])
  all = all + there[ARGV[k]]
end
if has_moved or all ~= call('HLEN', JOB) then return 0 end
if differs('void', tonumber(call('GET', P .. 'void') or 0), tonumber(ARGV[3 + n])) and ARGV[1] == 'repair' then
  call('SET', P .. 'void', ARGV[3 + n])
end
for j = 1, #counted, 2 do there[counted[j]] = there[counted[j]] or 0 end
for name, n_there in pairs(there) do
  local is_wrong = COMPARED[match(name, '^%l+')] and differs(name, tonumber(call('HGET', COUNT, name) or 0), n_there)
  if is_wrong and ARGV[1] == 'repair' then call('HSET', COUNT, name, n_there) end
end
return out
