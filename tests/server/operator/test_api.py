"""The operator API over real TLS: what it does, for whom, and what it refuses."""

import io
import json
import socket
import ssl
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError, IdentityError
from fedlora.server.operator.api import HEALTH, make_api
from fedlora.server.operator.exchange import MAX_BODY, Failures
from fedlora.server.records import RunStatus
from tests.server.operator.living import SHORT, Living, living

RUN = {"overrides": SHORT}
RUNS = "/api/v1/runs"
BAD_IDS = ("..", "latest", "a b", "-x", "x" * 101, "..%2f..%2fetc", "%2e%2e", "a%00b", "%0a")


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def http(alive: Living) -> Iterator[httpx.Client]:
    with alive.http() as client:
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, authority: Path) -> Iterator[Living]:
    """For what is refused and leaves nothing."""
    with living(tmp_path_factory.mktemp("shared") / "home", authority, drive=False) as found:
        yield found


@pytest.fixture(scope="module")
def refusing(shared: Living) -> Iterator[httpx.Client]:
    with shared.http() as client:
        yield client


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == kind
    assert "Traceback" not in response.text
    return dict(error)


def started(http: httpx.Client, **body: Any) -> str:
    response = http.post(RUNS, json={**RUN, **body})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def ended(http: httpx.Client, run_id: str, status: str = "finished") -> dict[str, Any]:
    until(lambda: http.get(f"{RUNS}/{run_id}").json()["run"]["status"] == status)
    return dict(http.get(f"{RUNS}/{run_id}").json())


# Who may call it


def test_health_is_open_and_says_nothing_else(alive: Living) -> None:
    with alive.http("") as stranger:
        response = stranger.get(HEALTH)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_every_route_needs_the_token(alive: Living) -> None:
    """Every route of the application, those of other kinds that are added later too."""
    app = alive.server._app

    async def plain(request: Request) -> PlainTextResponse:
        return PlainTextResponse("secret")

    app.add_api_route("/later", lambda: "secret", methods=["GET", "DELETE"])
    app.add_route("/starlette", plain, methods=["PUT"])
    app.mount("/mounted", PlainTextResponse("secret"))
    asked = set()
    with alive.http("") as nobody, alive.http("x" * 43) as stranger, alive.http() as operator:
        for route in app.routes:
            path = str(getattr(route, "path", "")).replace("{run_id}", "some-run")
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                if path == HEALTH:
                    continue
                for client in (nobody, stranger):
                    response = client.request(method, path)
                    assert response.status_code in (401, 429), (method, path)
                    assert "secret" not in response.text
                asked.add((method, path))
        assert operator.get("/later").text == '"secret"'
        assert operator.get("/mounted/").text == "secret"
    assert {("DELETE", "/later"), ("PUT", "/starlette"), ("GET", "/mounted"), ("POST", RUNS)} < asked
    assert len(asked) == 10 + 4


def test_what_is_not_there_is_not_told_to_strangers(alive: Living) -> None:
    with alive.http("") as stranger, alive.http() as operator:
        for path in ("/", "/docs", "/redoc", "/openapi.json", "/nothing", f"{HEALTH}/", "//api/v1/health"):
            problem(stranger.get(path), 401, "IdentityError")
            assert operator.get(path).status_code == 404


def test_only_the_whole_token_counts(alive: Living) -> None:
    right, short = alive.token, alive.token[:-1]
    wrong = ("", "Bearer", f"Basic {right}", f"Bearer {right}x", f"bearer {short}", right, "Bearer ä")
    with alive.http("") as client:
        for given in wrong:
            response = client.get(RUNS, headers={b"Authorization": given.encode()})
            error = problem(response, 401, "IdentityError")
            assert response.headers["www-authenticate"] == "Bearer"
            assert right not in json.dumps(error)
        assert client.get(RUNS, headers={"Authorization": f"bearer {right}"}).status_code == 200


def test_two_tokens_are_none(alive: Living) -> None:
    right = ("Authorization", f"Bearer {alive.token}")
    with alive.http("") as client:
        assert client.get(RUNS, headers=[right, ("Authorization", "Bearer x")]).status_code == 401
        assert client.get(RUNS, headers=[right]).status_code == 200


def test_wrong_tokens_are_limited_and_the_right_one_is_not(alive: Living, caplog: pytest.LogCaptureFixture) -> None:
    with alive.http("y" * 43) as stranger, alive.http() as operator:
        codes = [stranger.get(RUNS).status_code for _ in range(14)]
        assert codes == [401] * 10 + [429] * 4
        assert stranger.get(RUNS).headers["retry-after"] == "60"
        assert operator.get(RUNS).status_code == 200
    assert len([record for record in caplog.records if "without the operator's token" in record.message]) == 10
    assert "yyyy" not in caplog.text


def test_failures_are_bounded_and_forgotten() -> None:
    now = 0.0
    failures = Failures(limit=2, seconds=10, addresses=3, clock=lambda: now)
    assert [failures.add("a") for _ in range(3)] == [True, True, False]
    assert failures.add("b")
    now = 10.0
    assert failures.add("a")
    for number in range(100):
        failures.add(f"c{number}")
    assert len(failures) == 3


def test_a_weak_token_is_refused(alive: Living) -> None:
    for token in ("", "secret", "x" * 42):
        with pytest.raises(IdentityError, match="256 random bits"):
            make_api(alive.queue, alive.store, token, list)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost@evil", "evil.example:{port}", "", "[::2]", "localhost/x"],
)
def test_a_foreign_name_for_this_server_is_refused(shared: Living, host: str) -> None:
    """A page whose name was made to point here (DNS rebinding) gets nothing, not even with the token."""
    with shared.http() as client:
        for path in (RUNS, HEALTH):
            response = client.get(path, headers={"Host": host.format(port=shared.server.port)})
            problem(response, 400, "LinkError")


def test_our_own_names_are_taken(alive: Living) -> None:
    with alive.http() as client:
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{alive.server.port}", "[::1]:9"):
            assert client.get(RUNS, headers={"Host": host}).status_code == 200, host


def test_no_other_page_may_read_the_answers(alive: Living) -> None:
    """No CORS; and headers that tell browsers so, on errors too."""
    with alive.http(headers={"Origin": "https://evil.example"}) as stranger:
        answers = [stranger.get(HEALTH), stranger.get(RUNS), stranger.options(RUNS), stranger.get("/nothing")]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_a_large_body_is_refused(http: httpx.Client, alive: Living) -> None:
    big = b'{"overrides": ["' + b"x" * MAX_BODY + b'"]}'
    kind = {"Content-Type": "application/json"}
    problem(http.post(RUNS, content=big, headers=kind), 413, "ConfigError")

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(big), 1 << 16):
            yield big[start : start + (1 << 16)]

    problem(http.post(RUNS, content=pieces(), headers=kind), 413, "ConfigError")
    with alive.http("") as stranger:
        assert stranger.post(RUNS, content=big).status_code == 401
    assert http.get(RUNS).json() == {"runs": []}


def test_a_declared_length_is_believed_before_anything_is_read(alive: Living) -> None:
    context = ssl.create_default_context(cafile=alive.home / "ca" / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", alive.server.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        head = f"POST {RUNS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {alive.token}\r\n"
        secure.sendall(f"{head}Content-Length: {MAX_BODY + 1}\r\n\r\n".encode())
        assert secure.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"[" * 100_000, b'{"overrides": "x"}', b'{"more": 1}', b"\xff", b'{"config": []}']
)
def test_a_body_of_another_form(refusing: httpx.Client, body: bytes) -> None:
    response = refusing.post(RUNS, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["error"]["type"] in ("ConfigError", "LinkError")


@pytest.mark.parametrize("run_id", BAD_IDS)
@pytest.mark.parametrize("tail", ["", "/adapter", "/events", "/events/stream"])
def test_no_id_leads_elsewhere(shared: Living, run_id: str, tail: str) -> None:
    """Sent as they are: a client library would put the path in order first."""
    context = ssl.create_default_context(cafile=shared.home / "ca" / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", shared.server.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        path = f"{RUNS}/{run_id}{tail}".replace(" ", "%20")
        head = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {shared.token}\r\nConnection: close\r\n"
        )
        secure.sendall(f"{head}\r\n".encode())
        status = int(secure.recv(100).split()[1])
    assert status in (404, 422)


def test_a_run_that_is_not_there(http: httpx.Client) -> None:
    for path in ("", "/events", "/events/stream", "/adapter"):
        error = problem(http.get(f"{RUNS}/20260101-000000-fedavg-abcd{path}"), 404, "UnknownRunError")
        assert error["exit_code"] == 21
    for path in ("/stop", "/resume"):
        problem(http.post(f"{RUNS}/20260101-000000-fedavg-abcd{path}"), 404, "UnknownRunError")


def test_a_bug_is_told_without_its_traceback(alive: Living, caplog: pytest.LogCaptureFixture) -> None:
    alive.server._app.add_api_route("/bug", lambda: 1 / 0)
    with alive.http() as client:
        response = client.get("/bug")
    error = problem(response, 500, "InternalError")
    assert "ZeroDivision" not in json.dumps(error)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" in caplog.text


# Submitting


def test_a_run_is_composed_queued_driven_and_shown(http: httpx.Client, alive: Living) -> None:
    response = http.post(RUNS, json={"overrides": [*SHORT, "strategy=fed_sb", "name=first"]})
    assert response.status_code == 201
    run = response.json()
    assert (run["name"], run["strategy"], run["rounds"]) == ("first", "fed_sb", 3)
    alive.player.free()
    shown = ended(http, run["id"])
    assert [record["round"] for record in shown["rounds"]] == [0, 1, 2, 3]
    assert [row["outcome"] for row in shown["rounds"][1]["roster"]] == ["reported", "rejected"]
    assert shown["config"]["store"] == str(alive.store.folder)
    assert shown["run"]["bytes_up"] == 600
    assert "config" not in shown["run"]
    assert [row["id"] for row in http.get(RUNS).json()["runs"]] == [run["id"]]


def test_a_run_gets_a_name(http: httpx.Client) -> None:
    assert http.post(RUNS, json=RUN).json()["name"] == "fedavg-trec"


def test_all_problems_at_once(http: httpx.Client) -> None:
    overrides = [
        "train.lr=-1",
        "strategi=fed_sb",
        "store=/srv/elsewhere",
        "output=/etc",
        "privacy.ledgers=/var",
        "engine=processes",
        "name=${oc.env:HOME}",
        "seed=0,1",
    ]
    error = problem(http.post(RUNS, json={"overrides": overrides}), 422, "ConfigError")
    assert len(error["problems"]) == len(overrides)
    for word in ("train.lr", "strategi", "store:", "output:", "privacy.ledgers:", "engine:", "looks nothing up"):
        assert [text for text in error["problems"] if word in text], word
    assert http.get(RUNS).json() == {"runs": []}


@pytest.mark.parametrize(
    "override",
    [
        "name=${oc.env:SECRET}",
        "name='a ${oc.env:SECRET}'",
        'name="${oc.decode:${oc.env:SECRET}}"',
        "adapter.targets=[query,'${oc.env:SECRET}']",
        "model.architecture={model_type:'${oc.env:SECRET}'}",
        "model.architecture={'${oc.env:SECRET}':1}",
        "hydra.searchpath=[file:///etc]",
        "+store=/x",
        "privacy={ledgers:/x}",
        "engine.workers=3",
        "engine={name:sequential}",
        "hydra/launcher=basic",
        "model@store=hub",
    ],
)
def test_overrides_are_data(refusing: httpx.Client, override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    error = problem(refusing.post(RUNS, json={"overrides": [override]}), 422, "ConfigError")
    assert "hunter2" not in json.dumps(error)


def test_the_default_engine_may_be_said(http: httpx.Client) -> None:
    assert http.post(RUNS, json={"overrides": ["engine=auto", "engine.workers=null"]}).status_code == 201


def whole(alive: Living, **changes: Any) -> dict[str, Any]:
    config = alive.player.samples.config(
        data={
            "source": "local",
            "name": "rows",
            "path": "/srv/x",
            "text": "t",
            "label": "l",
            "partition": {"name": "iid"},
        },
        model={"source": "asset", "name": "minilm"},
    )
    return dict(config.model_dump(mode="json")) | changes


def test_a_whole_configuration(http: httpx.Client, alive: Living) -> None:
    response = http.post(RUNS, json={"config": whole(alive)})
    assert response.status_code == 201, response.text
    stored = alive.store.get(response.json()["id"])
    config = RunConfig.model_validate_json(stored.config)
    assert config.data == RunConfig.model_validate(whole(alive)).data
    assert config.strategy.options["init"] == "random"
    assert len(config.strategy.options) > 1, "the method's options are written out"


def test_a_whole_configuration_is_not_interpreted(http: httpx.Client, alive: Living) -> None:
    response = http.post(RUNS, json={"config": whole(alive, name="${oc.env:HOME}")})
    stored = alive.store.get(response.json()["id"])
    assert stored.name == RunConfig.model_validate_json(stored.config).name == "${oc.env:HOME}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"store": "/srv/elsewhere", "output": "/etc", "engine": {"name": "processes"}},
            ["store:", "output:", "engine:"],
        ),
        ({"privacy": {"name": "none", "ledgers": "/x"}}, ["privacy.ledgers:", "privacy.ledgers = /x has no meaning"]),
        ({"seed": -1, "name": ["x"], "fast": True}, ["seed", "name", "fast"]),
        ({"strategy": {"name": "fedsb"}}, ["fedsb"]),
        ({"strategy": {"name": "fed_sb", "speed": 1}, "output": "/x"}, ["strategy.speed", "output:"]),
        ({"federation": {"clients": 2, "cohort": 3}}, ["federation.cohort = 3 asks more clients"]),
    ],
)
def test_mistakes_of_a_whole_configuration(
    refusing: httpx.Client, shared: Living, changes: dict[str, Any], words: list[str]
) -> None:
    error = problem(refusing.post(RUNS, json={"config": whole(shared, **changes)}), 422, "ConfigError")
    assert len(error["problems"]) == len(words)
    for word in words:
        assert [text for text in error["problems"] if word in text], word


def test_one_of_overrides_and_config(http: httpx.Client, alive: Living) -> None:
    for body in ({}, {"overrides": [], "config": whole(alive)}):
        error = problem(http.post(RUNS, json=body), 422, "ConfigError")
        assert "either overrides" in error["problems"][0]


def test_the_same_key_is_one_run(http: httpx.Client) -> None:
    first = started(http, submit_key="night 1")
    assert started(http, submit_key="night 1", overrides=["seed=9"]) == first
    assert started(http, submit_key="night 2") != first
    assert len(http.get(RUNS).json()["runs"]) == 2


def test_the_server_prepares_what_is_submitted(tmp_path: Path, authority: Path) -> None:
    def prepare(config: RunConfig) -> RunConfig:
        if config.federation.clients > 5:
            raise ConfigError(["federation.clients: only 5 sites are enrolled"])
        return config.model_copy(update={"seed": 77})

    with living(tmp_path / "home", authority, prepare=prepare) as alive, alive.http() as http:
        error = problem(http.post(RUNS, json={"overrides": []}), 422, "ConfigError")
        assert error["problems"] == ["federation.clients: only 5 sites are enrolled"]
        run = http.post(RUNS, json={"overrides": ["federation.clients=5"]}).json()
        assert run["seed"] == 77


# Stopping, resuming, fetching


def test_stop_and_resume(http: httpx.Client, alive: Living) -> None:
    alive.player.free(2)
    run_id = started(http)
    queued = started(http)
    until(lambda: len(http.get(f"{RUNS}/{run_id}").json()["rounds"]) == 2)
    assert http.post(f"{RUNS}/{queued}/stop").json()["status"] == "stopped"
    answer = http.post(f"{RUNS}/{run_id}/stop").json()
    assert (answer["status"], answer["stop_requested"]) == ("running", True)
    stopped = ended(http, run_id, "stopped")
    assert stopped["run"]["reason"] == "stopped on request after round 1"
    alive.player.free()
    assert http.post(f"{RUNS}/{run_id}/resume", json={"rounds": 4}).json()["rounds"] == 4
    assert [record["round"] for record in ended(http, run_id)["rounds"]] == [0, 1, 2, 3, 4]
    problem(http.post(f"{RUNS}/{run_id}/resume"), 409, "RunError")
    problem(http.post(f"{RUNS}/{run_id}/stop"), 409, "RunError")
    problem(http.post(f"{RUNS}/{queued}/resume", json={"rounds": 0}), 422, "ConfigError")
    assert alive.player.played == [run_id, run_id]


def test_the_adapter_is_a_zip_file(http: httpx.Client, alive: Living) -> None:
    run_id = started(http)
    error = problem(http.get(f"{RUNS}/{run_id}/adapter"), 409, "RunError")
    assert "has no adapter" in error["message"]
    alive.player.free()
    ended(http, run_id)
    folder = alive.store.get(run_id).folder / "adapter"
    secret = alive.home / "operator.token"
    (folder / "link").symlink_to(secret)
    (folder / "nested").mkdir()
    (folder / "nested" / "file").write_bytes(b"x")
    (folder / "elsewhere").symlink_to(alive.home)
    response = http.get(f"{RUNS}/{run_id}/adapter")
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["adapter_config.json", "adapter_model.safetensors", "nested/file"]
        assert archive.read("adapter_model.safetensors") == b"weights" * 100_000
    assert alive.token.encode() not in response.content


def test_the_adapter_has_its_place() -> None:
    from fedlora.server.operator.archive import ADAPTER
    from fedlora.simulations import results

    assert ADAPTER == results.ADAPTER


def test_clients(tmp_path: Path, authority: Path) -> None:
    rows = [{"name": "north", "since": float("nan"), "data": ["rows"], "path": Path("x")}]
    with living(tmp_path / "home", authority, clients=lambda: rows) as alive, alive.http() as http:
        found = http.get("/api/v1/clients").json()
    assert found == {"clients": [{"name": "north", "since": "NaN", "data": ["rows"], "path": "x"}]}


def test_figures_that_are_not_finite(tmp_path: Path, authority: Path) -> None:
    with living(tmp_path / "home", authority, drive=False) as alive, alive.http() as http:
        run_id = started(http)
        alive.store.finish(alive.store.get(run_id), RunStatus.FAILED, {"test_loss": float("nan")}, "diverged")
        assert http.get(f"{RUNS}/{run_id}").json()["run"]["summary"] == {"test_loss": "nan"}
