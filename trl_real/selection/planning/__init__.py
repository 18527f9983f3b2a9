"""
Cost of a selection before it runs: `trl-real select --plan`.

Start with `plan.plan_selection`, which reads a sample of the pool and returns a `plan_record.SelectionPlan`.
`model_shape` counts a model's weights from its config, `cost` has the equations, `hardware` the table of devices.

`cost` and `hardware` are arithmetic without torch; nothing outside the cli imports this folder.
"""
