"""
Model and task of `trl-real demo`: `model` gets SmolLM2-135M-Instruct, `task` holds the prompts and the true reward.

The steps of the demo are in `trl_real.cli.demo`. These modules may import `models` and `trl_real.errors`.
"""
