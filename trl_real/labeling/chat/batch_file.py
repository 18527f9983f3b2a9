"""Questions for a server's batch service (half the price, up to a day), and its answers for the cache."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.question import Question
from trl_real.labeling.chat.server import Endpoint
from trl_real.runtime.openai_client import NotAnswered


def export_batch(endpoint: Endpoint, questions: Iterable[Question], path: str | Path) -> int:
    """
    Write the questions without a cached answer, in OpenAI's batch format.

    Args:
        endpoint: Endpoint of the judge, `ChatJudge(…, base_url=…).model`; nothing is sent to it.
        questions: Questions of `ChatJudge.questions`.
        path: Path of the JSON Lines file to write.

    Returns:
        Number of questions written.
    """
    by_key = {endpoint.key(question): question for question in questions}
    known = endpoint.cache.get(by_key)
    missing = {key: question for key, question in by_key.items() if key not in known}
    with open(path, "w", encoding="utf-8") as file:
        for key, question in missing.items():
            body = endpoint.body(question)
            line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return len(missing)


def import_batch(endpoint: Endpoint, path: str | Path) -> Counter:
    """
    Store the answers of a batch service in the cache, where the judge finds them.

    Args:
        endpoint: Endpoint that exported the questions.
        path: Path of the service's output file.

    Returns:
        Number of answers `kept` and of requests `failed`; the judge asks the failed ones again.

    Raises:
        TrlRealError: If a line is not a result of a batch service.
    """
    counts: Counter = Counter(kept=0, failed=0)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                result = json.loads(line)
                key, response = result["custom_id"], result["response"]
                completion = (response or {}).get("body") or {}
                answered = bool(response) and response["status_code"] == 200 and bool(completion["choices"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TrlRealError(
                    f"Line {number} of {str(path)!r} is not a result of a batch service. Give its output file."
                ) from error
            if answered:
                try:
                    endpoint.keep(key, None, completion)
                except NotAnswered:  # absurd counts of tokens
                    answered = False
            counts["kept" if answered else "failed"] += 1
    return counts
