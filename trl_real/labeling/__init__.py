"""
Labels for selected pairs: which response of a pair is better.

A judge gives each pair a probability; `annotate` turns its verdicts into preferences. Start with `judges.py`: it has
the table of judges and the shortest judge, by scores. Chat models are in `chat/`, votes of people in `people/`.
`check.py` measures a judge on labelled pairs, `self_annotate.py` labels a policy's own generations, and `relabel.py`
asks another judge about the least confident labels.

May import `models`, `data`, `functional`, `runtime`, `reports` and `errors`.
"""
