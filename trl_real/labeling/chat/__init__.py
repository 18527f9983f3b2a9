"""
Chat models as judges, in this process or on a server.

Start with `judge.py`: `ChatJudge` asks in both orders and combines the answers. `templates.py` has the prompts,
`reading.py` reads the answers, with `verdict_text.py` for their words; `question.py` is the interface to the models:
`local.py` for a model in this process, `server.py` for an OpenAI-compatible server. What that one needs:
`completion.py` (forms of answers), `dialect.py` (fields that a server accepts), `purse.py` (money), `answer_cache.py`
and `kept.py` (the cache), `batch_file.py` (batch services).

May import the modules of `labeling/` and what they may import. A model of your own answers `Question`s with `Answer`s.
"""

from trl_real.labeling.chat.question import Answer as Answer
from trl_real.labeling.chat.question import Question as Question
