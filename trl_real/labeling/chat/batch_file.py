"""Questions for a server's batch service (half the price, a day's patience), and its answers into the cache."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.question import Question
from trl_real.labeling.chat.server import Endpoint


def export_batch(endpoint: Endpoint, questions: Iterable[Question], path: str | Path) -> int:
    """
    Write the questions that the cache has no answer to in OpenAI's batch format.

    Args:
        endpoint: Of a `ChatJudge(…, base_url=…).model`; nothing is sent to it.
        questions: Of `ChatJudge.questions`.
        path: JSON Lines file to write.

    Returns:
        How many were written.
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
    Put the answers of a batch service into the cache, from where the judge takes them as if it had asked.

    Args:
        endpoint: The one that wrote the questions.
        path: The service's output file.

    Returns:
        How many answers were `kept` and how many requests `failed`; those are asked again when the judge runs.

    Raises:
        TrlRealError: If a line is no line of such a file.
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
                    f"Line {number} of {str(path)!r} is no answer of a batch service. Give its output file."
                ) from error
            if answered:
                endpoint.keep(key, None, completion)
            counts["kept" if answered else "failed"] += 1
    return counts
