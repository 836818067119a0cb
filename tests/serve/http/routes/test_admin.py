from __future__ import annotations

import httpx
import pytest

from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import BASE, FakeEngine
from tests.support.serve.running import run_server, wait_until

BAD_NAMES = ["../x", "/etc/passwd", "a/b", ".hidden", "..", "a\0b", "x" * 10_000, "x" * 129, "", " ", "é", "a\nb"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root, other = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("other")
    for folder in (root / "good", root / "deep" / "good", other / "secret", root / "not-an-adapter"):
        folder.mkdir(parents=True)
    for folder in (root / "good", root / "deep" / "good", other / "secret"):
        (folder / "adapter_config.json").write_text("{}")
    (root / "link-out").symlink_to(other / "secret")
    (root / "link-in").symlink_to(root / "good")
    (root / "loop").symlink_to(root / "loop")
    (root / "a-file").write_text("")
    return root, other


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def client(engine, roots):
    settings = HttpSettings(admin_token="s3cret", adapter_folders=(roots[0],))
    headers = {"Authorization": "Bearer s3cret"}
    with run_server(engine, settings) as address, httpx.Client(base_url=address, headers=headers) as client:
        yield client


def _load(client, name, folder):
    return client.post("/admin/adapters", json={"name": name, "folder": str(folder)})


def _names(client):
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_an_adapter_is_loaded_replaced_and_unloaded(client, engine, roots):
    answer = _load(client, "new-1.0_x", roots[0] / "good")
    assert answer.status_code == 200
    expected = {"name": "new-1.0_x", "folder": str(roots[0] / "good"), "loaded": True, "rank": 4, "labels": []}
    assert answer.json() == expected
    assert "new-1.0_x" in _names(client)
    assert _load(client, "new-1.0_x", "deep/good").status_code == 200  # relative to the root
    assert engine.known["new-1.0_x"].folder == roots[0] / "deep" / "good"
    (roots[0] / "run" / "adapter").mkdir(parents=True)
    (roots[0] / "run" / "adapter" / "adapter_config.json").write_text("{}")
    assert _load(client, "of-a-run", "run").json()["folder"] == str(roots[0] / "run" / "adapter")
    assert _load(client, "linked", roots[0] / "link-in").json()["folder"] == str(roots[0] / "good")
    gone = client.delete("/admin/adapters/new-1.0_x")
    assert gone.json() == {"id": "new-1.0_x", "object": "model", "deleted": True}
    assert "new-1.0_x" not in _names(client)
    assert client.delete("/admin/adapters/new-1.0_x").status_code == 404


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_means_something_elsewhere_is_refused(client, engine, roots, name):
    before = dict(engine.known)
    answer = _load(client, name, roots[0] / "good")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "name"
    assert len(answer.text) < 500
    assert engine.known == before


@pytest.mark.parametrize("name", ["..%2Fx", "%2Fetc%2Fpasswd", ".hidden", "a%00b", "x" * 1000, "%FF", "a%2Fb"])
def test_no_bad_name_is_unloaded(client, engine, name):
    before = dict(engine.known)
    assert client.delete(f"/admin/adapters/{name}").status_code in (400, 404)
    assert engine.known == before


def test_an_adapter_cannot_take_the_name_of_the_base(client, roots):
    assert _load(client, BASE, roots[0] / "good").status_code == 409
    assert client.delete(f"/admin/adapters/{BASE}").status_code == 404


@pytest.mark.parametrize(
    ("folder", "status"),
    [
        ("{other}/secret", 403),
        ("{root}/../{other.name}/secret", 403),
        ("{root}/link-out", 403),
        ("link-out", 403),
        ("../{other.name}/secret", 403),
        ("/", 403),
        ("/etc", 403),
        ("~", 404),
        ("{root}/missing", 404),
        ("{root}/a-file", 404),
        ("{root}/loop", 400),
        ("a\0b", 400),
        ("{root}/not-an-adapter", 400),
        ("x" * 4000, 400),
        ("x" * 5000, 400),
        ("", 400),
    ],
)
def test_only_an_adapter_below_a_root_is_loaded(client, engine, roots, folder, status):
    answer = _load(client, "new", folder.format(root=roots[0], other=roots[1]))
    assert answer.status_code == status, answer.text
    assert "new" not in engine.known


@pytest.mark.parametrize("token", [None, "", "wrong", "s3cre", "s3crets", "é", "s3cret\x00"])
def test_nobody_loads_or_unloads_without_the_token(client, engine, roots, token):
    headers = {"Authorization": b"Bearer " + token.encode()} if token is not None else {}
    del client.headers["Authorization"]
    body = {"name": "new", "folder": str(roots[0] / "good")}
    try:
        answers = [
            client.post("/admin/adapters", json=body, headers=headers),
            client.delete("/admin/adapters/alice", headers=headers),
        ]
    except httpx.LocalProtocolError:  # the client itself does not send such a header
        return
    assert all(answer.status_code in (400, 401) for answer in answers)
    assert list(engine.known) == ["alice", "holmes"]


def test_the_servers_token_is_not_the_admins(roots):
    settings = HttpSettings(token="all", admin_token="s3cret", adapter_folders=(roots[0],))
    with run_server(FakeEngine(), settings) as address:
        answer = httpx.delete(f"{address}/admin/adapters/alice", headers={"Authorization": "Bearer all"})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer None"}])
def test_without_a_configured_token_the_routes_are_off(headers):
    with run_server(FakeEngine(), HttpSettings()) as address:
        answer = httpx.delete(f"{address}/admin/adapters/alice", headers=headers)
    assert answer.status_code == 403
    assert "set admin_token" in answer.json()["error"]["message"]


def test_an_unknown_key_is_refused(client, roots):
    answer = client.post("/admin/adapters", json={"name": "new", "folder": str(roots[0] / "good"), "force": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "force")


def test_many_rounds_leave_nothing_in_the_metrics(client, roots):
    for index in range(30):
        name = f"round-{index}"
        assert _load(client, name, roots[0] / "good").status_code == 200
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert client.delete(f"/admin/adapters/{name}").status_code == 200
    assert "round-" not in client.get("/metrics").text


def test_an_answer_that_ends_after_its_adapter_was_unloaded_leaves_nothing_in_the_metrics(client, engine, roots):
    engine.delay = 0.02
    for index in range(3):
        assert _load(client, f"round-{index}", roots[0] / "good").status_code == 200
        body = {"model": f"round-{index}", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
            assert client.delete(f"/admin/adapters/round-{index}").status_code == 200
    assert client.delete("/admin/adapters/holmes").status_code == 200
    wait_until(lambda: not engine.running())
    assert client.delete("/admin/adapters/alice").status_code == 200
    assert "round-" not in client.get("/metrics").text
