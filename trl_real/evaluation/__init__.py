"""
Evaluation of trained models: win rates by a judge, with intervals, reasons to doubt them, and report pages.

Start with `compare` (two policies or columns of completions) or `callback` (the win rate during training);
`tournament` ranks several models, `report` writes the page, and `metrics/` holds the metric for `evaluate`.

These modules may import `labeling`, `models`, `data`, `functional`, `runtime` and `reports`, but not `training`.
"""
