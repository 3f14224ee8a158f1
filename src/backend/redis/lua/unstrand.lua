-- running -> ready, as never started: jobs of a claim or a settle whose answer was lost.
--
-- ARGV: worker, then tokens.

in_any_case()
local RUN = P .. 'run:' .. ARGV[1]
local is_stranded = {}
for k = 2, #ARGV do is_stranded[ARGV[k]] = true end
local held = call('HGETALL', RUN)
for j = 1, #held, 2 do
  local id, text = held[j], held[j + 1]
  if is_stranded[match(text, '^(%S+)')] then
    call('HDEL', RUN, id)
    give_back(id, record(text))
  end
end
write_counts()
