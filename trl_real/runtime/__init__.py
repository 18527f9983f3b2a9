"""
Infrastructure that does not know about preferences: files, processes, shards, journals, and requests to a server.

Start with `atomic_files` (files written in one step) and `run_folder` (a run that continues after a kill). `journal`
keeps results line by line, `shards` and `stream_shards` map a function over datasets that do not fit in memory,
`ray_workers` does the same on Ray, `distributed` splits work among the processes of a launcher, `devices` finds the
accelerator, `openai_client` sends requests with retries, and `digests` makes keys.

This package imports only `trl_real.errors`; every other package may import it.
"""
