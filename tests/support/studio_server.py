"""A small server that answers like Label Studio: projects, tasks on pages, annotations, users and tokens."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Studio:
    """
    The server and its content.

    Args:
        token: Legacy token of the only user.
    """

    def __init__(self, token: str):
        self.token, self.projects, self.tasks = token, [], []
        self.users, self.clock, self.n_annotations = [{"id": 1, "email": "ann@example.org"}], 0, 0
        handler = type("Handler", (_Handler,), {"studio": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Return status and content of an answer."""
        number = int((re.findall(r"\d+", path) or [0])[0])
        if path == "/api/users/":
            return 200, self.users
        if path == "/api/projects/":
            self.projects.append(body)
            return 201, {"id": len(self.projects)}
        if path == "/api/tasks":
            found = [task for task in self.tasks if task["project"] == int(query["project"])]
            if int(query["project"]) > len(self.projects):
                return 404, {"detail": "no such project"}
            start = (int(query["page"]) - 1) * int(query["page_size"])
            return 200, {"tasks": found[start : start + int(query["page_size"])], "total": len(found)}
        if path.endswith("/import"):
            for task in body:
                self.tasks.append({"id": len(self.tasks), "project": number, "annotations": [], **task})
            return 201, {"task_count": len(body)}
        return self.annotate(method, number, body)

    def annotate(self, method: str, number: int, body: Any) -> tuple[int, Any]:
        """Create, change or delete an annotation."""
        self.clock += 1
        time = f"2026-11-28T10:00:{self.clock:02}.000000Z"
        if method == "POST":
            self.n_annotations += 1
            made = {"id": self.n_annotations, "completed_by": 1, "updated_at": time, "was_cancelled": False, **body}
            self.tasks[number]["annotations"].append(made)
            return 201, made
        for task in self.tasks:
            for each in list(task["annotations"]):
                if each["id"] == number and method == "DELETE":
                    task["annotations"].remove(each)
                elif each["id"] == number:
                    each.update(body, updated_at=time)
        return (204, None) if method == "DELETE" else (200, {})


class _Handler(BaseHTTPRequestHandler):
    studio: Studio

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(content) if content else None
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/api/token/refresh":
            status, found = 200, {"access": f"short-lived {body['refresh']}"}
        elif self.headers["Authorization"] not in (f"Token {self.studio.token}", "Bearer short-lived a.b.c"):
            status, found = 401, {"detail": "invalid token"}
        else:
            status, found = self.studio.answer(self.command, parts.path, query, body)
        data = b"" if found is None else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _handle

    def log_message(self, *args: Any) -> None:
        pass
