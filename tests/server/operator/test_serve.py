"""Where the API listens, its token, and how a command finds it."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fedlora.errors import ConfigError, IdentityError, LinkError, RunError, StoreError, UnknownRunError
from fedlora.server.operator.access import Access, find_access, is_loopback, publish
from fedlora.server.operator.api import make_api
from fedlora.server.operator.archive import unpack, zipped
from fedlora.server.operator.client import OperatorClient, history_of
from fedlora.server.operator.serve import OperatorServer
from fedlora.server.operator.token import make_token, read_token
from fedlora.server.queue import RunQueue
from fedlora.server.store import RunStore
from tests.server.operator.living import SHORT, Living, make_authority

TOKEN = "t" * 43


def test_no_listening_beyond_this_machine_without_tls(alive: Living) -> None:
    for host in ("0.0.0.0", "", "::", "192.0.2.1", "server.example"):  # noqa: S104
        with pytest.raises(IdentityError, match=r"cannot listen on .* without TLS"):
            OperatorServer(alive.server._app, host, 0, None, None)


def test_without_tls_on_loopback(alive: Living) -> None:
    app = make_api(alive.queue, alive.store, alive.token, list)
    with OperatorServer(app, "127.0.0.1", 0, None, None) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert httpx.get(f"{server.url}/api/v1/health", trust_env=False).json() == {"status": "ok"}


def test_a_certificate_and_key_that_do_not_fit(alive: Living, authority: Path, tmp_path: Path) -> None:
    make_authority(tmp_path / "other")
    for certificate, key in (
        (authority / "server.crt", tmp_path / "other" / "server.key"),
        (tmp_path / "missing.crt", authority / "server.key"),
        (authority / "server.key", authority / "server.key"),
    ):
        with pytest.raises(IdentityError, match="cannot use the certificate"):
            OperatorServer(alive.server._app, "127.0.0.1", 0, certificate, key)


def test_a_port_that_is_taken(alive: Living, authority: Path) -> None:
    for port in (alive.server.port, 99999):
        server = OperatorServer(
            alive.server._app, "127.0.0.1", port, authority / "server.crt", authority / "server.key"
        )
        with pytest.raises(LinkError, match=f"cannot listen on 127.0.0.1:{port}"):
            server.start()
        server.stop()


def test_stopping_twice_and_the_port_is_free_again(tmp_path: Path, authority: Path) -> None:
    with RunStore.open(tmp_path / "runs") as store:
        ports = []
        for _ in range(2):
            app = make_api(RunQueue(store), store, TOKEN, list)
            wanted = ports[0] if ports else 0
            with OperatorServer(app, "127.0.0.1", wanted, authority / "server.crt", authority / "server.key") as server:
                ports.append(server.port)
            server.stop()
        assert ports[0] == ports[1]
    assert [thread.name for thread in threading.enumerate() if thread.name == "operator-api"] == []


# The token


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "operator.token"
    token = make_token(path)
    assert len(token) == 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert make_token(path) == read_token(path) == token
    assert make_token(tmp_path / "other.token") != token
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["operator.token", "other.token"]


def test_two_processes_that_make_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "operator.token"
    found: list[str] = []
    monkeypatch.setattr(Path, "exists", lambda self: False)
    threads = [threading.Thread(target=lambda: found.append(make_token(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {read_token(path)}


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0o600, "cannot be read"),
        (b"", 0o600, "holds no operator's token"),
        (b"secret\n", 0o600, "holds no operator's token"),
        ("ä".encode() * 43, 0o600, "it is no text"),
        (TOKEN.encode(), 0o640, r"other users may read .*mode 0640"),
        (TOKEN.encode(), 0o604, r"other users may read .*mode 0604"),
    ],
)
def test_tokens_that_are_not_taken(tmp_path: Path, content: bytes | None, mode: int, words: str) -> None:
    path = tmp_path / "operator.token"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(IdentityError, match=words):
        read_token(path)


def test_a_token_is_not_written_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write the operator's token to"):
        make_token(tmp_path / "missing" / "operator.token")


# Finding it


def test_access_by_home(alive: Living) -> None:
    found = find_access(None, alive.home, {"FEDLORA_SERVER": "https://other:1", "FEDLORA_TOKEN": "x"})
    assert found == Access(alive.server.url, alive.token, alive.home / "ca" / "ca.crt")
    assert alive.token not in repr(found)
    assert find_access("https://localhost:7/", alive.home, {}).url == "https://localhost:7"


def test_access_by_environment(alive: Living) -> None:
    authority = alive.home / "ca" / "ca.crt"
    environment = {"FEDLORA_SERVER": "https://a.example:2", "FEDLORA_TOKEN": TOKEN, "FEDLORA_CA": str(authority)}
    assert find_access(None, None, environment) == Access("https://a.example:2", TOKEN, authority)
    assert find_access("https://b.example", None, environment).url == "https://b.example"
    assert find_access("https://b.example", None, {"FEDLORA_TOKEN": TOKEN}).authority is None


@pytest.mark.parametrize(
    ("server", "environment", "kind", "words"),
    [
        (None, {}, LinkError, "no server is named: give --home"),
        ("https://a.example", {}, IdentityError, "FEDLORA_TOKEN is not set"),
        ("https://a.example", {"FEDLORA_TOKEN": "x"}, IdentityError, "FEDLORA_TOKEN is no operator token"),
        ("a.example:1", {"FEDLORA_TOKEN": TOKEN}, LinkError, "is no address of a server"),
        ("https://a.example:x", {"FEDLORA_TOKEN": TOKEN}, LinkError, "is no address of a server"),
        ("https://me:you@a.example", {"FEDLORA_TOKEN": TOKEN}, LinkError, "is no address of a server"),
        ("https://a.example/path", {"FEDLORA_TOKEN": TOKEN}, LinkError, "is no address of a server"),
        ("ftp://a.example", {"FEDLORA_TOKEN": TOKEN}, LinkError, "is no address of a server"),
        ("http://a.example", {"FEDLORA_TOKEN": TOKEN}, LinkError, "is not encrypted"),
        ("https://a", {"FEDLORA_TOKEN": TOKEN, "FEDLORA_CA": "/no/ca.crt"}, IdentityError, "/no/ca.crt, is not there"),
    ],
)
def test_access_that_is_not_there(
    server: str | None, environment: dict[str, str], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        find_access(server, None, environment)


def test_a_home_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="was it started"):
        find_access(None, tmp_path, {})
    (tmp_path / "operator.json").write_text("[]")
    with pytest.raises(LinkError, match="was it started"):
        find_access(None, tmp_path, {})
    publish(tmp_path, "https://127.0.0.1:1")
    assert json.loads((tmp_path / "operator.json").read_text()) == {"url": "https://127.0.0.1:1"}
    with pytest.raises(IdentityError, match=r"cannot be read from .*operator\.token"):
        find_access(None, tmp_path, {})


def test_loopback() -> None:
    assert [host for host in ("localhost", "127.9.9.9", "::1", "10.0.0.1", "a.example", "") if is_loopback(host)] == [
        "localhost",
        "127.9.9.9",
        "::1",
    ]


# The client


def test_no_proxy_stands_between_a_command_and_its_own_machine(alive: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with OperatorClient(alive.access) as client:
        assert list(client.runs()) == []


def test_a_server_with_another_authority_is_not_spoken_to(alive: Living, tmp_path: Path) -> None:
    make_authority(tmp_path / "other")
    for wrong in (tmp_path / "other" / "ca.crt", None):
        client = OperatorClient(replace(alive.access, authority=wrong))
        with client, pytest.raises(IdentityError, match="does not prove to be the server"):
            client.runs()
    (tmp_path / "no.crt").write_text("x")
    with pytest.raises(IdentityError, match="is no certificate of an authority"):
        OperatorClient(replace(alive.access, authority=tmp_path / "no.crt"))


def test_errors_are_those_of_the_server(alive: Living) -> None:
    with OperatorClient(alive.access) as client:
        with pytest.raises(ConfigError) as caught:
            client.submit("key", ["train.lr=-1", "store=/x"], None)
        assert len(caught.value.problems) == 2
        with pytest.raises(UnknownRunError, match="no run 'some-run'"):
            client.shown("some-run")
        run = client.submit("key", SHORT, None)
        with pytest.raises(RunError, match="only a run that was stopped"):
            client.resume(run["id"], None)
        with pytest.raises(RunError, match="has no adapter"):
            client.download(run["id"], alive.home / "file.zip")
    stranger = OperatorClient(replace(alive.access, token=TOKEN))
    with stranger, pytest.raises(IdentityError, match="does not take the token"):
        stranger.runs()


def test_what_is_no_fedlora(alive: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    with OperatorClient(alive.access) as client:
        for path, answer in (("/other", {"runs": 1}), ("/words", "text")):
            alive.server._app.add_api_route(f"/api/v1{path}", lambda answer=answer: answer)
            with pytest.raises(LinkError, match="fedlora"):
                client._list(path, "runs")
        with pytest.raises(LinkError, match="same version"):
            history_of({"run": {"id": "x"}, "rounds": []})


def test_a_submission_whose_answer_was_lost_is_repeated_once(alive: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.server.operator.client._WAITS", (0.01, 0.01))
    with OperatorClient(alive.access) as client:
        send, lost = client._http.request, [httpx.ReadError("broken"), httpx.ReadTimeout("late")]

        def flaky(*arguments: object, **options: object) -> httpx.Response:
            response = send(*arguments, **options)  # type: ignore[arg-type]
            if lost:
                raise lost.pop()
            return response

        monkeypatch.setattr(client._http, "request", flaky)
        run = client.submit("key", SHORT, None)
        assert [found["id"] for found in client.runs()] == [run["id"]]


def test_finding_a_run(alive: Living) -> None:
    with OperatorClient(alive.access) as client:
        with pytest.raises(UnknownRunError, match="has no run 'latest'"):
            client.find("latest")
        first = client.submit("a", ["name=first"], None)["id"]
        second = client.submit("b", ["name=second"], None)["id"]
        third = client.submit("c", ["name=second"], None)["id"]
        assert client.find("first") == client.find(first) == first
        assert client.find("latest") == third
        assert client.find(second[:-1]) in (second, third) or second[:-1] == third[:-1]
        for text, count in (("second", 2), (first[:4], 3)):
            with pytest.raises(UnknownRunError, match=f"means {count} runs"):
                client.find(text)
        for text in ("", "nothing"):
            with pytest.raises(UnknownRunError, match="has no run"):
                client.find(text)


# Archives


def test_a_folder_travels_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    content = {"a.bin": os.urandom(700_000), "deep/b": b"", "deep/ä": b"x"}
    for name, data in content.items():
        (source / name).write_bytes(data)
    os.utime(source / "a.bin", (0, 0))  # before what a zip file can say
    pieces = list(zipped([source / name for name in content], source))
    assert max(map(len, pieces)) < 300_000
    (tmp_path / "a.zip").write_bytes(b"".join(pieces))
    files = unpack(tmp_path / "a.zip", tmp_path / "new" / "out")
    assert {str(path.relative_to(tmp_path / "new" / "out")): path.read_bytes() for path in files} == content


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "good/../.."])
def test_no_file_is_unpacked_elsewhere(tmp_path: Path, name: str) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", "x")
        archive.writestr(name, "x")
    with pytest.raises(StoreError, match="could be written elsewhere"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(StoreError, match="could be written elsewhere"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_a_damaged_download_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"weights" * 1000)
    whole = b"".join(zipped([tmp_path / "source" / "a"], tmp_path / "source"))
    for damaged in (whole[: len(whole) // 2], whole.replace(b"weights", b"Weights", 1), b""):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(StoreError, match="no whole zip file"):
            unpack(tmp_path / "a.zip", tmp_path / "out")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.zip", "source"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for place in ("out", "file"):
        with pytest.raises(StoreError, match="not empty: choose another"):
            unpack(tmp_path / "a.zip", tmp_path / place)


def test_starting_takes_no_time(alive: Living) -> None:
    app = make_api(alive.queue, alive.store, alive.token, list)
    began = time.monotonic()
    with OperatorServer(app, "localhost", 0, None, None):
        pass
    assert time.monotonic() - began < 3
