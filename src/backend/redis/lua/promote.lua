-- scheduled -> ready, whatever their time; returns how many.

in_any_case()
local promoted, n = 0, 0
repeat
  n = make_due('+inf')
  promoted = promoted + n
until n == 0
return promoted
