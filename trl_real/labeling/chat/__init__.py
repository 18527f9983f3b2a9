"""
Chat models as judges, in this process or on a server.

Start with `judge.py`: `ChatJudge` asks in both orders and combines the answers. `templates.py` has the prompts and
reads the answers; `question.py` is the interface to the models: `local.py` for a model in this process, `server.py`
for an OpenAI-compatible server, with its cache in `answer_cache.py` and batch files in `batch_file.py`.

May import the modules of `labeling/` and what they may import.
"""
