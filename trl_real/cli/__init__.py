"""
Command line `trl-real`: one verb per file.

Start with `main`, which lists the verbs and runs one. The file of a verb has `register` (adds its flags) and `run`
(does the work). `options` has flags and output that verbs share, `judges` builds judges from flags, and `rounds` has
the common parts of the verbs that run in rounds.

This package may import every other package and is imported by none. Imports of heavy libraries are inside functions,
so that `trl-real --help` is fast.
"""
