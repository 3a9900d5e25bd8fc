"""From runs to a report: `gather` finds them, `measure` sums them up (`judged`: what judges say), `accuracy`,
`efficiency` and `rows` make tables of it, with the paper's figures from `paper`, and `charts` draws it; `page` and
`formats` write it down, `queries` says how each number comes from its rows. `write.report` does it all.
"""
