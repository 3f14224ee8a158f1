-- One beat; the answer has the places of leases that must be let go.
SELECT place, is_cancel FROM dejq.beat($1, $2, $3, $4, $5)
