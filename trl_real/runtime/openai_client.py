"""Requests to an OpenAI-compatible server, retried until an answer comes or no retry can help."""

import json
import os
import random
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from trl_real.errors import TrlRealError, needs_extra
from trl_real.runtime.words import printable


SHORTEST_KEY = 8  # characters; a shorter one is a word such as "none"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds
FIRST_CONTACT = 10.0  # seconds in which a server must accept the first connection

# Statuses that no retry and no other row changes.
HOPELESS = {
    401: "does not accept the key: give api_key, or set it in the environment",
    402: "wants to be paid first",
    403: "does not allow this",
    404: "does not know this model or path",
}

OPENAI, KEY_VARIABLE = "api.openai.com", "TRL_REAL_JUDGE_API_KEY"


class NotAnswered(Exception):
    """A request has no answer, for the given reason; other requests may still get one."""


class _TryAgain(Exception):
    """An attempt failed with a temporary error."""

    def __init__(self, reason: str, pause: float | None = None):
        super().__init__(reason)
        self.reason, self.pause = reason, pause


class _NotReached(_TryAgain):
    """An attempt could not connect to the server."""


class Requests:
    """
    Thread-safe client that retries requests to one server.

    Args:
        base_url: URL of the server, such as `http://127.0.0.1:8000/v1`.
        api_key: API key, sent only to that server and never stored.
        model: Name of the model; answers from another model are refused.
        timeout: Seconds for one attempt, from the first byte sent to the last byte read.
        deadline: Seconds for one request, including all attempts and pauses.
        max_retries: Number of attempts after the first one.
    """

    def __init__(
        self, base_url: str, api_key: str | None, model: str, timeout: float, deadline: float, max_retries: int
    ):
        with needs_extra("openai", "judge"):
            from openai import OpenAI

            from trl_real.runtime.bounded_http import bounded_client
        self.shown_url, self.model = without_password(base_url), model
        self.timeout, self.deadline, self.max_retries = timeout, deadline, max_retries
        http: Any = bounded_client()
        key = api_key or "none"
        self.client = OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=timeout, http_client=http)
        self.key = api_key or ""
        self.ever_answered = False
        self.stopped = threading.Event()
        self._not_before = 0.0
        self._lock = threading.Lock()

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """
        Send one request with this JSON body and return the completion.

        Raises:
            NotAnswered: If this request gets no answer before the deadline.
            TrlRealError: If no request can be answered: the server, key or model is wrong.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

        started = time.monotonic()
        last = cast(Any, stop_after_attempt(self.max_retries + 1))
        retrying = Retrying(
            retry=retry_if_exception_type(_TryAgain),
            wait=_pause,
            stop=last | stop_before_delay(self.deadline) | self._is_unreachable,
            sleep=cast(Any, self.stopped.wait),
            reraise=True,
        )
        try:
            completion = retrying(self._try, body, started)
        except _TryAgain as error:
            if self._was_never_reached(error):
                raise TrlRealError(f"No answer from {self.shown_url}: {error.reason}. Is the server up?") from error
            raise NotAnswered(error.reason) from error
        self.ever_answered = True
        return completion

    def _is_unreachable(self, state: Any) -> bool:
        """Return whether to stop early: a wrong port fails soon, a server that restarts is waited for."""
        return state.seconds_since_start > FIRST_CONTACT and self._was_never_reached(state.outcome.exception())

    def _was_never_reached(self, error: _TryAgain) -> bool:
        return isinstance(error, _NotReached) and not self.ever_answered

    def _try(self, body: dict[str, Any], started: float) -> dict[str, Any]:
        self.stopped.wait(max(0.0, self._not_before - time.monotonic()))
        if self.stopped.is_set():
            raise NotAnswered("stopped")
        left = self.deadline - (time.monotonic() - started)
        if left <= 0:
            raise NotAnswered(f"no answer within {self.deadline:g} s")
        return self._checked(self._read(body, time.monotonic() + min(self.timeout, left)))

    def _read(self, body: dict[str, Any], until: float) -> bytes:
        """Send the request and read the answer; the client bounds its size and time."""
        import httpx2
        import openai

        from trl_real.runtime.bounded_http import Unreadable

        try:
            patience = max(0.001, until - time.monotonic())
            create = self.client.with_options(timeout=patience).chat.completions.with_streaming_response.create
            with create(**body) as response:
                return b"".join(response.iter_bytes())
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise _TryAgain("no answer in time") from error
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, Unreadable):
                raise _TryAgain(str(cause)) from error
            raise _NotReached(f"no connection ({type(cause).__name__})") from error

    def _refused(self, error: Any) -> Exception:
        """Return the error for a status: retry, give up on this request, or give up on all requests."""
        status = error.status_code
        message = printable(self._without_key(str(error.message)))
        code = getattr(error, "code", None)
        if status in HOPELESS or code == "insufficient_quota":
            meaning = HOPELESS.get(status, "has no quota left for this key")
            return TrlRealError(f"{self.shown_url} {meaning} (model {self.model!r}, status {status}).")
        if status in (408, 409, 429) or status >= 500:
            pause = _retry_after(error.response.headers.get("retry-after"))
            if pause is not None:
                with self._lock:  # other threads have to wait, too
                    self._not_before = max(self._not_before, time.monotonic() + min(pause, self.deadline))
            return _TryAgain(f"status {status}", pause)
        return NotAnswered(f"status {status}: {message}")

    def _without_key(self, words: str) -> str:
        """Return a server's words without the key, should it send the key back."""
        return words.replace(self.key, "[key]") if len(self.key) >= SHORTEST_KEY else words

    def _checked(self, content: bytes) -> dict[str, Any]:
        """Return the completion after checking its form and its model."""
        try:
            completion = json.loads(self._without_key(content.decode("utf-8", "replace")))
            completion["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise _TryAgain("an answer that is not a chat completion") from error
        found = completion.get("model")
        if isinstance(found, str) and not _same_model(found, self.model):
            raise _TryAgain(f"an answer of another model ({printable(found, 80)!r}; if that is right, give served_as)")
        return completion


def without_password(url: str) -> str:
    """Return the URL without user, password and query, safe to show and store."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path.rstrip("/"), "", ""))


def _same_model(found: str, asked: str) -> bool:
    """Return whether the names match; one may be a path, or longer or dated, such as `gpt-4o-2024-08-06`."""
    found, asked = (name.rstrip("/").rpartition("/")[2].lower() for name in (found, asked))
    return found.startswith(asked) or asked.startswith(found) if found and asked else True


def _retry_after(value: str | None) -> float | None:
    """Return the seconds to wait, from a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _pause(state: Any) -> float:
    """Return the pause that the server asked for, else exponential backoff; both with jitter."""
    asked = state.outcome.exception().pause
    if asked is not None:
        return asked + random.uniform(0, 0.1 + 0.1 * asked)
    return random.uniform(0.5, 1) * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (state.attempt_number - 1))


def key_for(api_key: str | None, base_url: str) -> str | None:
    """Return the given key, or one from the environment; OpenAI's own key is sent to OpenAI only."""
    if api_key is None and urlsplit(base_url).hostname == OPENAI:
        api_key = os.environ.get("OPENAI_API_KEY")
    return api_key or os.environ.get(KEY_VARIABLE)


def key_in(api_key: str | None, file: str | None) -> str | None:
    """
    Return the key, given as such or in a file.

    Raises:
        TrlRealError: If both are given, or the file cannot be read or is empty.
    """
    if file is None:
        return api_key
    if api_key is not None:
        raise TrlRealError("api_key and api_key_file are both given. Leave one out.")
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TrlRealError(
            f"Cannot read the key in {str(file)!r} ({type(error).__name__}). Check the path."
        ) from error
    if not key:
        raise TrlRealError(f"{str(file)!r} is empty. Write the key into it.")
    return key
