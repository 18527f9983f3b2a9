"""Requests to an OpenAI-compatible server, retried until an answer comes or no retry can help."""

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from trl_real.errors import TrlRealError, needs_extra
from trl_real.runtime.server_words import json_object, printable, same_model, words_of


LARGEST_BODY, LARGEST_TOKEN = 2**20, 4096  # bytes of an answer without and for each token with its alternatives
SHORTEST_KEY = 8  # characters; a shorter one is a word such as "none"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds
FIRST_CONTACT = 10.0  # seconds in which a server must accept the first connection
ODD_BEFORE_SUCCESS, ODD_IN_A_ROW = 3, 20  # useless answers in a row that end a run

# Statuses that no retry and no other row changes.
HOPELESS = {
    401: "does not accept the key: give api_key, or set it in the environment",
    402: "wants to be paid first",
    403: "does not allow this",
    404: "does not know this model or path",
    405: "takes no questions at this path: base_url often ends in /v1",
}
PASSING = re.compile(
    r"rate.?limit|overload|time.?out|timed out|temporar|unavailable|try again|capacity", re.IGNORECASE
)
UNSUPPORTED = re.compile(r"unexpected keyword|not supported|unsupported|not implemented", re.IGNORECASE)
UNTIL_TOMORROW = re.compile(r"insufficient_quota|per[ -]?day|daily", re.IGNORECASE)

OPENAI, KEY_VARIABLE = "api.openai.com", "TRL_REAL_JUDGE_API_KEY"


class NotAnswered(Exception):
    """A request has no answer, for the given reason; other requests may still get one."""


class Refused(NotAnswered):
    """
    The server refuses a request as it is.

    Args:
        reason: Why, in a few words.
        answer: Whole answer of the server.
        ends_all: Whether other requests will not do better, if none has been answered yet.
    """

    def __init__(self, reason: str, answer: str, ends_all: bool = False):
        super().__init__(reason)
        self.answer, self.ends_all = answer, ends_all


class _TryAgain(Exception):
    """An attempt failed with a temporary error."""

    def __init__(self, reason: str, pause: float | None = None):
        super().__init__(reason)
        self.reason, self.pause = reason, pause


class _Odd(_TryAgain):
    """A useless answer with status 200, of which the server may send `allowed` before the first useful one."""

    def __init__(self, reason: str, allowed: int = ODD_BEFORE_SUCCESS):
        super().__init__(reason)
        self.allowed = allowed


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
        http: Any = bounded_client(_largest_answer)
        key = api_key or "none"
        self.client = OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=timeout, http_client=http)
        self.secrets = [text for text in (api_key, urlsplit(base_url).password) if text and len(text) >= SHORTEST_KEY]
        self.ever_answered = self.is_known = False
        self.is_deployment = (urlsplit(base_url).hostname or "").endswith(".azure.com")  # of a name of its own
        self.n_odd = 0  # useless answers in a row
        self.stopped = threading.Event()
        self._not_before = 0.0
        self._lock = threading.Lock()

    def ask(self, body: dict[str, Any], paid: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """
        Send one request with this JSON body and return the completion.

        Args:
            body: Fields of the request.
            paid: Called with each answer that the server charges for, useless ones included.

        Raises:
            Refused: If the server refuses this request.
            NotAnswered: If this request gets no answer before the deadline.
            TrlRealError: If no request can be answered: the server, key, model or quota is wrong.
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
            completion = retrying(self._try, body, started, paid or (lambda _: None))
        except _TryAgain as error:
            if self._was_never_reached(error):
                raise TrlRealError(f"No answer from {self.shown_url}: {error.reason}. Is the server up?") from error
            raise NotAnswered(error.reason) from error
        self.ever_answered, self.n_odd = True, 0
        return completion

    def _is_unreachable(self, state: Any) -> bool:
        """Return whether to stop early: a wrong port fails soon, a server that restarts is waited for."""
        return state.seconds_since_start > FIRST_CONTACT and self._was_never_reached(state.outcome.exception())

    def _was_never_reached(self, error: _TryAgain) -> bool:
        return isinstance(error, _NotReached) and not self.ever_answered

    def _try(self, body: dict[str, Any], started: float, paid: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        self.stopped.wait(max(0.0, self._not_before - time.monotonic()))
        if self.stopped.is_set():
            raise NotAnswered("stopped")
        left = self.deadline - (time.monotonic() - started)
        if left <= 0:
            raise NotAnswered(f"no answer within {self.deadline:g} s")
        content = self._read(body, time.monotonic() + min(self.timeout, left))
        try:
            return self._checked(content, paid)
        except _Odd as error:
            self._give_up_on(error)
            raise

    def _give_up_on(self, error: _Odd) -> None:
        """End the run after too many useless answers in a row; each may be charged for."""
        with self._lock:
            self.n_odd += 1
        if self.n_odd >= (ODD_IN_A_ROW if self.ever_answered or self.is_known else error.allowed):
            raise TrlRealError(f"{self.shown_url} gives no usable answer (model {self.model!r}): {error.reason}.")

    def _read(self, body: dict[str, Any], until: float) -> bytes:
        """Send the request and read the answer; the client bounds its size and time."""
        import httpx2
        import openai

        from trl_real.runtime.bounded_http import Unreadable

        fields = {name: value for name, value in body.items() if name not in ("model", "messages", "extra_body")}
        # The client's own arguments are but a part of what servers take.
        extra = {**fields, **body.get("extra_body", {})}
        try:
            patience = max(0.001, until - time.monotonic())
            create = self.client.with_options(timeout=patience).chat.completions.with_streaming_response.create
            with create(model=body["model"], messages=body["messages"], extra_body=extra) as response:
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
        pause = _retry_after(error.response.headers.get("retry-after"))
        return self._failed(error.status_code, self._without_secrets(error.response.text), pause)

    def _failed(self, status: int, answer: str, pause: float | None = None) -> Exception:
        words = words_of(answer)
        said = f": {words}" if words else ""
        if status in HOPELESS or status == 429 and UNTIL_TOMORROW.search(answer):
            meaning = HOPELESS.get(status, "has no quota left for this key")
            return TrlRealError(f"{self.shown_url} {meaning} (model {self.model!r}, status {status}){said}.")
        if pause is not None and pause > self.deadline:
            return TrlRealError(
                f"{self.shown_url} asks to wait {pause / 3600:.1f} hours (status {status}){said}. Answers so far are "
                f"kept: run again then, or give a longer deadline than {self.deadline:g} s."
            )
        if status in (408, 409, 429) or status >= 500 and not UNSUPPORTED.search(answer):
            if pause is not None:
                with self._lock:  # other threads have to wait, too
                    self._not_before = max(self._not_before, time.monotonic() + pause)
            return _TryAgain(f"status {status}{said}", pause)
        return Refused(f"status {status}{said}", answer)

    def _checked(self, content: bytes, paid: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Return the completion after checking its form and its model."""
        text = self._without_secrets(content.decode("utf-8", "replace"))
        try:
            completion = json.loads(text)
            choice = completion["choices"][0]
            is_completion = all(isinstance(each["message"], dict) for each in completion["choices"])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            completion, choice, is_completion = json_object(text), {}, False
        if isinstance(completion.get("usage"), dict) or is_completion:
            paid(completion)
        error = completion.get("error") or (choice.get("error") if is_completion else None)
        if error:
            raise self._failed_inside(error, text)
        if not is_completion:
            raise _Odd(f"an answer that is not a chat completion ({words_of(text)})")
        found = completion.get("model")
        if isinstance(found, str) and not self.is_deployment and not same_model(found, self.model):
            raise _Odd(
                f"an answer of another model ({printable(found, 80)!r}; if that is right, give served_as)", allowed=1
            )
        return completion

    def _failed_inside(self, error: Any, text: str) -> Exception:
        """Return the error for a failure that the server tells inside an answer with status 200."""
        code = str(error.get("code") or error.get("status") or "") if isinstance(error, dict) else ""
        passing = PASSING.search(text) if not code.isdigit() else code in ("408", "409", "429") or int(code) >= 500
        if passing and not UNTIL_TOMORROW.search(text):
            return _Odd(f"an error inside an answer ({words_of(text)})")
        found = self._failed(int(code) if code.isdigit() else 400, text)
        return Refused(str(found), text, ends_all=True) if isinstance(found, Refused) else found

    def _without_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        return text


def without_password(url: str) -> str:
    """Return the URL without user, password and query, safe to show and store."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path.rstrip("/"), "", ""))


def _largest_answer(request: Any) -> int:
    """Return the most bytes that the answer to a request may have."""
    body = json_object(request.content.decode("utf-8", "replace"))
    tokens = body.get("max_tokens") or body.get("max_completion_tokens") or LARGEST_TOKEN
    return LARGEST_BODY + (LARGEST_TOKEN * tokens if "logprobs" in body else 0)


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
