"""Gate in front of the page: who may ask, and for what. Other sites and other local servers get nothing."""

import hmac
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit


LOOPBACK = ("127.0.0.1", "localhost")
# The page needs no other host, so nothing that Gradio or a text refers to is fetched.
CONTENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
)
# Paths of Gradio's own scripts and styles, the same for everybody, and of the events.
OPEN = (
    "/assets/", "/static/", "/svelte/", "/theme.css", "/gradio_api/theme.css", "/favicon.ico", "/robots.txt",
    "/manifest.json", "/gradio_api/startup-events",
)  # fmt: skip
NEEDED = ("/config", "/login_check", *(f"/gradio_api/{name}" for name in (
    "run/", "api/", "call/", "queue/", "heartbeat/", "info", "app_id", "token", "login_check", "reset", "cancel",
)))  # fmt: skip
LARGEST_BODY = 2**20  # bytes of a request; a vote has some hundred
REFUSED = {
    401: b"Open the address that was printed where the page was started.",
    403: b"Not from another site.",
    404: b"The page has nothing here.",
    413: b"Too long.",
}


class Gate:
    """
    ASGI middleware that lets only the page's own requests through, and adds the content policy to each answer.

    A request needs the token, in the address or in the cookie that the first visit sets. It must not come from another
    site (`Origin`, `Sec-Fetch-Site`), and must be for one of the routes that the page needs.

    Args:
        app: Application behind the gate.
        token: Secret of this session.
    """

    def __init__(self, app: Any, token: str):
        self.app, self.token = app, token
        self.cookie = f"trl_real_{hmac.digest(token.encode(), b'cookie', 'sha256').hex()[:8]}"

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        entering = scope["path"] == "/" and self._is_token(given)
        status = self._status(scope, headers, entering)

        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                added = [(b"content-security-policy", CONTENT_POLICY.encode())]
                if entering:
                    cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
                    added.append((b"set-cookie", cookie.encode()))
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        if status is None:
            await self.app(scope, receive, with_policy)
        elif scope["type"] == "http":
            start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
            await with_policy(start)
            await send({"type": "http.response.body", "body": REFUSED[status]})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _status(self, scope: dict, headers: dict[str, str], entering: bool) -> int | None:
        """Return the status of a refusal, or None for a request that may pass."""
        path, host = scope["path"], headers.get("host", "")
        if not (path == "/" or path.startswith((*OPEN, *NEEDED))):
            return 404
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not entering:
            return 403
        if not path.startswith(OPEN) and not entering and not self._is_token(self._cookie_of(headers)):
            return 401
        length = headers.get("content-length", "0")
        sends = scope.get("method") == "POST"
        short = length.isdecimal() and int(length) <= LARGEST_BODY and "transfer-encoding" not in headers
        return 413 if sends and not short else None

    def _cookie_of(self, headers: dict[str, str]) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def gate(host: str) -> tuple[str, list[Any]]:
    """Return a new token, and the middleware of a page that listens on `host`."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    token = secrets.token_urlsafe(24)
    own = [Middleware(Gate, token=token)]
    if host in LOOPBACK:  # reject host names that another site points here
        own.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    return token, own
