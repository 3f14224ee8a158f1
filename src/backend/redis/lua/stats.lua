-- What is there, at a cost that does not grow with the backlog.
--
-- Returns the time, the number of workers that are alive, and lists of pairs: counts, totals, and the place of the job
-- that waits longest of each type; and 0, or 1 when it is to be asked again, because more void tickets stand in the way than
-- one call drops.

in_any_case()
while make_due(NOW) > 0 do end
local all, oldest = call('HGETALL', COUNT), {}
for j = 1, #all, 2 do
  local ty = match(all[j], '^ready (.+)$')
  if ty and all[j + 1] ~= '0' then
    local key = P .. 'fresh:' .. ty
    drop_voids(key)
    local entry = call('LINDEX', key, 0)
    local place = entry and int(place_of(entry))
    local back = call('ZRANGE', P .. 'back:' .. ty, 0, 0, 'WITHSCORES')
    if back[2] and (not place or tonumber(back[2]) < tonumber(place)) then
      place = match(frame_of(back[1]) or '', '^!?(%d+)') or place
    end
    if place then
      oldest[#oldest + 1] = ty
      oldest[#oldest + 1] = place
    end
  end
end
return { NOW, call('ZCOUNT', P .. 'workers', NOW, '+inf'), all, call('HGETALL', TOTAL), oldest, voids_left > 0 and 0 or 1 }
