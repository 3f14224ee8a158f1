-- A beat: renews the lease of a worker, and looks at jobs that it believes to have.
--
-- ARGV: worker, its name, lease, then groups: token, n, n ids.
-- Returns 1 when the queue was emptied meanwhile, else 0, and then pairs: a job by its number in the call, from 1, and 'l'
-- when it is not this worker's any more or 'c' when it is to be cancelled.

in_any_case()
seen(ARGV[1], ARGV[2], tonumber(ARGV[3]), true)
local told, number = { call('HSETNX', P .. 'meta', 'format', '1') }, 0
local k = 4
while k <= #ARGV do
  local token, n, ids = ARGV[k] .. ' ', tonumber(ARGV[k + 1]), {}
  for j = 1, n do ids[j] = ARGV[k + 1 + j] end
  for j, text in ipairs(read_all(P .. 'run:' .. ARGV[1], ids)) do
    local what = nil
    number = number + 1
    if not text or sub(text, 1, #token) ~= token then
      what = 'l'
    elseif string.find(match(text, '^%S+ (%S+)'), 'x', 1, true) then
      what = 'c'
    end
    if what then
      told[#told + 1] = number
      told[#told + 1] = what
    end
  end
  k = k + 2 + n
end
return told
