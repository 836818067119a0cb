"""A loopback server that answers as the Hugging Face hub does, as far as reading small repositories needs."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

COMMIT = "0" * 39 + "1"


@contextlib.contextmanager
def serve_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """The address of a hub that holds `repositories`: {"owner/name" or "datasets/owner/name": {file: content}}."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            status, content, headers = _answer(repositories, self.path.partition("?")[0])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _answer(repositories: dict[str, dict[str, bytes]], path: str) -> tuple[int, bytes, dict[str, str]]:
    if path == "/":
        return 200, b"", {}
    for name, files in repositories.items():
        api = f"/api/{name}" if "datasets/" in name else f"/api/models/{name}"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": file} for file in files]
            info = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings, "tags": []}
            return 200, json.dumps(info).encode(), {}
        if path in (f"{api}/tree/main", f"{api}/tree/{COMMIT}"):
            tree = [{"type": "file", "path": file, "size": len(data), "oid": file} for file, data in files.items()]
            return 200, json.dumps(tree).encode(), {}
        for revision in ("main", COMMIT):
            file = path.removeprefix(f"/{name}/resolve/{revision}/")
            if file in files:
                digest = hashlib.sha256(files[file]).hexdigest()
                return 200, files[file], {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
    return 404, b"{}", {"X-Error-Code": "EntryNotFound"}
