"""From runs to a report: `gather` finds them, `measure` sums them up, `tables`, `rows` and `charts` show it, `page` and
`formats` write it down, `queries` says how each number comes from its rows. `write.report` does it all.
"""
