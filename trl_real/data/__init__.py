"""
Datasets as input and output: reading, saving, converting, and the texts in their rows.

Start with `files` (`load` and `save`) and `sources` (converters for well-known preference datasets, built on
`convert`). `conversation` handles prompts and responses as text or as messages, `chat` makes messages of texts and
`template` renders them, `columns` handles rows and batches in any format of `datasets`, `pairs` finds the responses of
a row that can form a pair, and `digest` identifies a dataset.
`images` reads the images of a row, `turns` splits dialogues, and `traces` reads sessions of agents.

This package imports only `trl_real.errors`. Packages above it may import it; `functional`, `reports` and `runtime`
may not.
"""
