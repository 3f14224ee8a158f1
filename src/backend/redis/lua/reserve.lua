-- Places for jobs that are about to be stored by commands of their own. ARGV: how many. Returns the first.

return int(take_places(tonumber(ARGV[1])))
