"""HTTP client for servers that nobody vouches for: every answer is bounded in size and time, and none redirects."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpcore2
import httpx2


LARGEST_ANSWER = 2**20  # bytes of the answer to a good request
LARGEST_EXCUSE = 2**16  # bytes that are read of an error page
UNTIL = "trl_real_until"
_request = threading.local()  # `until`: when the time of this thread's request is over


class Unreadable(httpx2.TransportError):
    """An answer is longer than any real one, or compressed although that was not asked for."""


def bounded_client(
    largest: Callable[[httpx2.Request], int] = lambda _: LARGEST_ANSWER, **settings: Any
) -> httpx2.Client:
    """
    Return a client that follows no redirect, asks for plain bytes, and reads each answer to a bound: `largest` returns
    the most bytes of the good answer to a request.

    A good answer that breaks a bound raises `Unreadable`, or `httpx2.ReadTimeout` when the read timeout of the request
    is over, however slowly the server sends its headers or body. Of any other status, what came within the bounds is
    the answer. `settings` are further ones of `httpx2.Client`.
    """
    client = httpx2.Client(
        follow_redirects=False,
        headers={"accept-encoding": "identity"},
        limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100),
        event_hooks={"request": [_note_deadline], "response": [partial(_bound, largest)]},
        **settings,
    )
    # A timeout of httpx is one of each read, and a header may come byte by byte.
    for transport in filter(None, (client._transport, *client._mounts.values())):
        pool: Any = transport._pool  # type: ignore[attr-defined]
        pool._network_backend = _Hasty(pool._network_backend)
    return client


def _note_deadline(request: httpx2.Request) -> None:
    request.headers["accept-encoding"] = "identity"
    patience = (request.extensions.get("timeout") or {}).get("read")
    _request.until = time.monotonic() + (60.0 if patience is None else patience)
    request.extensions = {**request.extensions, UNTIL: _request.until}


class _Hasty:
    """Network of httpcore, or a stream of it, on which no read or write ends later than this thread's request."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def connect_tcp(self, *args: Any, **options: Any) -> "_Hasty":
        """Connect; return a stream."""
        return _Hasty(self.inner.connect_tcp(*args, **options))

    def start_tls(self, *args: Any, **options: Any) -> "_Hasty":
        """Return the encrypted stream."""
        return _Hasty(self.inner.start_tls(*args, **options))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what is there."""
        return self.inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all."""
        self.inner.write(buffer, _left(timeout))


def _left(timeout: float | None) -> float:
    left = _request.until - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("an answer that did not end in time")
    return left if timeout is None else min(timeout, left)


def _bound(largest: Callable[[httpx2.Request], int], response: httpx2.Response) -> None:
    compressed = response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")
    if compressed and response.is_success:
        raise Unreadable("a compressed answer, which was not asked for")
    if compressed:
        del response.headers["content-encoding"]
    limit = largest(response.request) if response.is_success else 0 if compressed else LARGEST_EXCUSE
    until = response.request.extensions[UNTIL]
    response.stream = _Bounded(response.stream, limit, until, strict=response.is_success)


class _Bounded(httpx2.SyncByteStream):
    """Stream of an answer that ends at a bound: with an error if it is `strict`."""

    def __init__(self, stream: Any, limit: int, until: float, strict: bool):
        self.stream, self.limit, self.until, self.strict = stream, limit, until, strict

    def __iter__(self) -> Iterator[bytes]:
        n_read = 0
        try:
            for piece in self.stream:
                n_read += len(piece)
                if n_read > self.limit:
                    raise Unreadable(f"an answer of more than {max(1, self.limit >> 20)} MB")
                if time.monotonic() > self.until:
                    raise httpx2.ReadTimeout("an answer that did not end in time")
                yield piece
        except (Unreadable, httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError):
            if self.strict:
                raise

    def close(self) -> None:
        """Close the connection; what was not read is dropped."""
        self.stream.close()
