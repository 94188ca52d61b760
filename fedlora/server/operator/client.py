"""The other side of the operator API: what `fedlora run` calls."""

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import TypeAdapter, ValidationError

from fedlora import errors
from fedlora.errors import ConfigError, FedloraError, IdentityError, LinkError, UnknownRunError
from fedlora.server.durable import explained
from fedlora.server.operator.access import Access, is_loopback
from fedlora.server.operator.messages import END, HEARTBEAT, read_messages
from fedlora.server.records import RoundRecord, RunHistory, RunInfo

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_STREAM_TIMEOUT = httpx.Timeout(3 * HEARTBEAT, connect=10.0)
_WAITS = (0.5, 2.0)  # seconds before a submission is repeated
_INFO: TypeAdapter[RunInfo] = TypeAdapter(RunInfo)
_ROUNDS: TypeAdapter[Sequence[RoundRecord]] = TypeAdapter(Sequence[RoundRecord])
Json = Mapping[str, Any]


class LostError(LinkError):
    """The connection broke off, or the server is on its way down: what was asked may be asked again."""


class OperatorClient:
    """Calls one server's API. Use as a context manager.

    Every method raises LinkError if the server cannot be reached or does not answer as one, IdentityError if it does
    not take the token or its certificate is not trusted, and the error that the server tells of.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._http = httpx.Client(
            base_url=f"{access.url}/api/v1",
            headers={"Authorization": f"Bearer {access.token}"},
            verify=_trust(access.authority),
            timeout=_TIMEOUT,
            trust_env=not is_loopback(access.host),
        )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def runs(self) -> Sequence[Json]:
        """Every run, newest first, as the server lists it."""
        return self._list("/runs", "runs")

    def clients(self) -> Sequence[Json]:
        """What the server knows of each client."""
        return self._list("/clients", "clients")

    def find(self, text: str) -> str:
        """The id of the run that `text` means: `latest`, an id, a name, or how an id begins. Raises UnknownRunError."""
        runs = self.runs()
        ways = (
            [run["id"] for run in runs if run["id"] == text],
            [run["id"] for run in runs[:1] if text == "latest"],
            [run["id"] for run in runs if run["name"] == text],
            [run["id"] for run in runs if text and run["id"].startswith(text)],
        )
        found = next((ids for ids in ways if ids), [])
        if len(found) == 1:
            return str(found[0])
        if not found:
            raise UnknownRunError(f"the server {self._access.url} has no run {text!r}; `fedlora run ls` lists them")
        shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise UnknownRunError(f"{text!r} means {len(found)} runs of the server: {shown}; give one id")

    def submit(self, submit_key: str, overrides: Sequence[str] | None, config: Json | None) -> Json:
        """A new run; with the same `submit_key`, the same. Repeated where the answer was lost on its way."""
        said = {"config": dict(config)} if config is not None else {"overrides": list(overrides or ())}
        for wait in _WAITS:
            try:
                return self._call("POST", "/runs", {"submit_key": submit_key, **said})
            except LostError:
                time.sleep(wait)
        return self._call("POST", "/runs", {"submit_key": submit_key, **said})

    def shown(self, run_id: str) -> Json:
        """A run with its rounds, their rosters, and its configuration, as JSON."""
        return self._call("GET", f"/runs/{run_id}")

    def stop(self, run_id: str) -> Json:
        """Asks a run to stop; returns it as it stands."""
        return self._call("POST", f"/runs/{run_id}/stop")

    def resume(self, run_id: str, rounds: int | None) -> Json:
        """Puts a run back into the queue, for `rounds` rounds in all."""
        return self._call("POST", f"/runs/{run_id}/resume", {} if rounds is None else {"rounds": rounds})

    def restart(self, run_id: str, without: Sequence[str]) -> Json:
        """A new run of the other sites, from the last checkpoint that holds nothing of those."""
        return self._call("POST", f"/runs/{run_id}/restart", {"without": list(without)})

    def download(self, run_id: str, file: Path) -> None:
        """Writes the zip file of the run's adapter to `file`."""
        with (
            self._streamed(f"/runs/{run_id}/adapter", {}) as response,
            explained("write", file),
            file.open("wb") as out,
        ):
            for piece in response.iter_bytes():
                out.write(piece)

    def messages(self, run_id: str, after: int) -> Iterator[tuple[str, int, str]]:
        """The kind, number and text of each message of the run's stream of events that comes after number `after`.

        Kinds as in `messages`; `END` is the last one. Raises LostError if the stream breaks off before that.
        """
        with self._streamed(f"/runs/{run_id}/events/stream", {"Last-Event-ID": str(after)}) as response:
            for message in read_messages(response.iter_lines(), after):
                yield message
                if message[0] == END:
                    return
        raise LostError("the stream of events has ended early")

    def _list(self, path: str, name: str) -> Sequence[Json]:
        found = self._call("GET", path).get(name)
        if not isinstance(found, list):
            raise LinkError(f"{self._access.url} has answered without {name}: is it a fedlora of this version?")
        return found

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        with self._explained():
            response = self._http.request(method, path, json=body)
        return self._content(response)

    @contextmanager
    def _streamed(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        with (
            self._explained(),
            self._http.stream("GET", path, headers=headers, timeout=_STREAM_TIMEOUT) as response,
        ):
            if response.is_error:
                response.read()
                self._content(response)
            yield response

    def _content(self, response: httpx.Response) -> Json:
        try:
            content = response.json()
        except ValueError:
            content = None
        if response.is_success and isinstance(content, dict):
            return content
        told = content.get("error") if isinstance(content, dict) else None
        raise _error(response.status_code, told if isinstance(told, dict) else {}, self._access)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        url = self._access.url
        try:
            yield
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise IdentityError(
                    f"{url} does not prove to be the server ({error}): use the address that is in its certificate, and"
                    " with FEDLORA_CA the ca/ca.crt of its home (or --home)"
                ) from error
            raise LinkError(_unreachable(url, error)) from error
        except httpx.ConnectTimeout as error:
            raise LinkError(_unreachable(url, error)) from error
        except httpx.TransportError as error:
            raise LostError(f"the connection to {url} broke off ({_said(error)}): try again") from error
        except httpx.HTTPError as error:
            raise LinkError(f"{url} has sent what cannot be read ({_said(error)}): is it fedlora?") from error


def info_of(row: Json) -> RunInfo:
    """The record of a run as the server lists it, without its configuration. Raises LinkError if it is none."""
    fields = {key: value for key, value in row.items() if key in RunInfo.__dataclass_fields__}
    with _of_this_version():
        return _INFO.validate_python({**fields, "config": ""})


def history_of(shown: Json) -> RunHistory:
    """The records in what `OperatorClient.shown` returns. Raises LinkError if there are none."""
    with _of_this_version():
        run = replace(info_of(shown["run"]), config=json.dumps(shown["config"]))
        return RunHistory(run, _ROUNDS.validate_python(shown["rounds"]))


@contextmanager
def _of_this_version() -> Iterator[None]:
    try:
        yield
    except (ValidationError, KeyError, AttributeError) as error:
        raise LinkError(
            "the server has sent a run that this fedlora cannot read: use the same version on both"
        ) from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _trust(authority: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise IdentityError(
            f"{authority} is no certificate of an authority ({error}): it must be a PEM file"
        ) from error


def _unreachable(url: str, error: Exception) -> str:
    return (
        f"cannot reach the server at {url} ({_said(error)}): is `fedlora server run` up there, and are"
        " address and port right?"
    )


def _error(status: int, told: Json, access: Access) -> FedloraError:
    """The error that the server told of, as the exception that it was there."""
    message = str(told.get("message", ""))
    if status in (401, 429):
        return IdentityError(
            f"the server {access.url} does not take the token ({message or status}): use the text of the file"
            " operator.token in its home (--home, or FEDLORA_TOKEN)"
        )
    if status == 503:
        return LostError(f"the server {access.url} has no time now: {message or 'it is busy'}")
    if told.get("type") == ConfigError.__name__:
        return ConfigError([str(problem) for problem in told.get("problems") or [message]])
    kind = getattr(errors, str(told.get("type")), None)
    if isinstance(kind, type) and issubclass(kind, FedloraError) and message:
        return kind(message)
    return LinkError(
        f"{access.url} has answered with status {status}{f' ({message})' if message else ''}: is it fedlora?"
    )
