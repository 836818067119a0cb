import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jlora.errors import JloraError
from train.artifacts.hub_upload import check_push, push


class _Hub(BaseHTTPRequestHandler):
    """A hub of one account, with the four addresses that an upload of small files asks."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        if self.headers["Authorization"] != "Bearer hf_good":
            return self._answer(403, {"error": "you cannot write here"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            hub.created.append(asked)
            return self._answer(200, {"url": f"{hub.address}/{asked.get('organization') or 'me'}/{asked['name']}"})
        if self.path == "/api/models/me/demo/preupload/main":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/models/me/demo/commit/main" and not hub.refuses_commits:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
            hub.files.update(files)
            return self._answer(
                200, {"commitUrl": f"{hub.address}/me/demo/commit/abc", "commitOid": "abc", "success": True}
            )
        return self._answer(404, {"error": f"nothing at {self.path}"})

    def _answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.created, server.files, server.refuses_commits = [], {}, False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nested").mkdir()
    (tmp_path / "README.md").write_text("---\ntags: [lora]\n---\n# Card\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "nested" / "notes.txt").write_text("hello")
    return tmp_path


def test_every_file_of_the_folder_arrives_in_one_private_repository(hub, folder):
    url = push(folder, "me/demo", private=True, endpoint=hub.address)
    assert url == f"{hub.address}/me/demo/commit/abc"
    expected = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.files == expected
    assert len(expected) == 3
    assert [asked["visibility"] for asked in hub.created] == ["private"]


def test_the_check_creates_the_repository_and_uploads_nothing(hub):
    assert check_push("demo", private=False, endpoint=hub.address) == "me/demo"
    assert hub.created[0]["visibility"] == "public"
    assert hub.files == {}


def test_without_a_token_nothing_is_asked_of_the_hub(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("train.artifacts.hub_upload.get_token", lambda: None)
    with pytest.raises(JloraError, match="hf auth login"):
        check_push("me/demo", private=True, endpoint=hub.address)
    assert not hub.created


def test_a_token_without_rights_an_impossible_name_and_a_silent_hub_are_errors(hub, monkeypatch):
    with pytest.raises(JloraError, match="owner/name"):
        check_push("a/b/c", private=True, endpoint=hub.address)
    with pytest.raises(JloraError, match="cannot write to me/demo"):
        check_push("me/demo", private=True, endpoint="http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(JloraError, match="403: you cannot write here"):
        check_push("me/demo", private=True, endpoint=hub.address)


def test_a_failed_upload_says_how_to_do_it_by_hand(hub, folder):
    hub.refuses_commits = True
    with pytest.raises(JloraError, match=f"hf upload me/demo {folder}"):
        push(folder, "me/demo", private=True, endpoint=hub.address)
