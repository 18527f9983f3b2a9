"""
Training with TRL: `REALDPOTrainer` and its configuration, supervised warm start, and adapters.

Start with `trainer.py`. It extends the trainer in `selecting_trainer.py`, which selects the training pairs, and uses
`noise` (soft labels, doubtful pairs), `forward_hooks.py` (values inside TRL's loss) and `eval_rows.py` (exact
metrics). `trainers.py` feeds TRL's other trainers, `warm_start.py` runs supervised fine-tuning, `resume.py` resumes a
run, and `adapters.py` creates, saves and loads PEFT adapters.

Besides the command line, only this package imports TRL. It may import `selection`, `labeling`, `models`, `data`,
`functional`, `runtime`, `reports` and `errors`.
"""
