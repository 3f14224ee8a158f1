-- A worker has stopped. What it still holds goes to others when its lease has run out.
--
-- ARGV: worker

in_any_case()
if call('EXISTS', P .. 'run:' .. ARGV[1]) == 0 then
  call('ZREM', P .. 'workers', ARGV[1])
  call('HDEL', P .. 'worker', ARGV[1])
end
