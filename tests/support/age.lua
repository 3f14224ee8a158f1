-- Makes everything in a queue older. KEYS[1] is its hash of jobs, ARGV[1] the time in microseconds.

local P, age = string.sub(KEYS[1], 1, -4), tonumber(ARGV[1])
local function older(number)
  if tonumber(number) == 0 then return number end
  return string.format('%.0f', tonumber(number) - age)
end
local function shift_scores(key)
  local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for j = 1, #entries, 2 do redis.call('ZADD', key, older(entries[j + 1]), entries[j]) end
end
local function rewrite(key, change)
  local entries = redis.call('HGETALL', key)
  for j = 1, #entries, 2 do redis.call('HSET', key, entries[j], change(entries[j + 1])) end
end
local function older_tail(text)
  return (string.gsub(text, '^( %S+ %S+ )(%d+)( %d+ %d+ )(%d+)', function(flags, started, counts, place)
    return flags .. older(started) .. counts .. older(place)
  end))
end

rewrite(P .. 'job', function(text)
  return (string.gsub(text, '^(!?)(%d+)', function(void, place) return void .. older(place) end))
end)
rewrite(P .. 'state', function(text)
  local state, moment, tail = string.match(text, '^(%l+) (%d+)(.*)$')
  return state .. ' ' .. older(moment) .. older_tail(tail)
end)
for _, key in ipairs(redis.call('KEYS', '*' .. string.match(P, '{(.*)}') .. '}:*')) do
  local name = string.sub(key, #P + 1)
  if string.find(name, '^run:') then
    rewrite(key, function(text)
      local token, tail = string.match(text, '^(%S+)(.*)$')
      return token .. older_tail(tail)
    end)
  elseif string.find(name, '^back:') then
    shift_scores(key)
  elseif string.find(name, '^fresh:') then
    local tickets = redis.call('LRANGE', key, 0, -1)
    for j, ticket in ipairs(tickets) do
      redis.call('LSET', key, j - 1, struct.pack('>I7', struct.unpack('>I7', ticket) - age) .. string.sub(ticket, 8))
    end
  end
end
for _, name in ipairs({ 'due', 'workers', 'failed' }) do shift_scores(P .. name) end
local last, since = string.match(redis.call('GET', P .. 'awake') or '', '^(%d+) (%d+)$')
if last then redis.call('SET', P .. 'awake', last .. ' ' .. older(since)) end
