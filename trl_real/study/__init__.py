"""
Efficiency study: how many labels a selection strategy saves compared with random selection.

Start with `run` (`run_study`, `load_study`). `pool` reads the data, `arms` selects pairs, `frozen` and `trained` run
the cells of the grid (`dpo` trains them with TRL), `grid` stores them, `summarize` turns them into a `Study` (see
`results`), and `report` writes the page with the figures of `plots`.

These modules may import every room below them: `training`, `selection`, `labeling`, `models`, `data`, `functional`,
`runtime` and `reports`.
"""
