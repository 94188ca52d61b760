"""A whole server for tests: a certificate authority, the API over TLS on loopback, and a driver that plays rounds."""

import importlib.util
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedlora.errors import RunError
from fedlora.server.events import (
    FILE,
    EventLog,
    RoundCommitted,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
)
from fedlora.server.operator.access import Access, publish
from fedlora.server.operator.api import make_api
from fedlora.server.operator.serve import OperatorServer
from fedlora.server.operator.token import make_token
from fedlora.server.queue import Driver, RunQueue
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore

SHORT = ["federation.rounds=3"]


def load_samples() -> ModuleType:
    """`tests/server/samples.py`."""
    spec = importlib.util.spec_from_file_location("samples", Path(__file__).parents[1] / "samples.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_authority(folder: Path) -> None:
    """ca.crt, and server.crt with server.key for 127.0.0.1 and localhost, signed with it."""
    folder.mkdir(parents=True)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("test authority", ca_key, None, ca_key)
    server = _certificate("test server", key, ca, ca_key)
    (folder / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.crt").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _certificate(name: str, key: Any, issuer: x509.Certificate | None, signer: Any) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    identifier = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage |= {"digital_signature": True, "key_cert_sign": issuer is None, "crl_sign": issuer is None}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), critical=True)
    )
    return builder.sign(signer, hashes.SHA256())


@dataclass
class Player:
    """A `start` for the driver: commits rounds and writes events as a real one does, waiting at each for `go`.

    go: a round is played for each permit; `free` gives as many as are wanted. fail_at: the round that fails.
    """

    store: RunStore
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fail_at: int | None = None
    played: list[str] = field(default_factory=list)
    samples: ModuleType = field(default_factory=load_samples)

    def free(self, rounds: int = 1000) -> None:
        """Lets `rounds` rounds pass."""
        self.go.release(rounds)

    def __call__(self, run: RunInfo, stop: Callable[[], bool]) -> None:
        self.played.append(run.id)
        run = self.store.reopen(run)
        with self.store.lock(run), EventLog(run.folder / FILE) as log:
            last = self.store.last_round(run)
            log.append(_opening(run, last))
            try:
                self._rounds(run, log, stop, -1 if last is None else last)
            except RunError as error:
                ending = {"run": run.id, "round": 0, "rounds": run.rounds, "seconds": 1.0}
                log.append(RunFailed(**ending, error="RunError", reason=str(error)))
                self.store.finish(run, RunStatus.FAILED, reason=f"RunError: {error}")
                raise

    def _rounds(self, run: RunInfo, log: EventLog, stop: Callable[[], bool], last: int) -> None:
        done = last
        for number in range(last + 1, run.rounds + 1):
            while not self.go.acquire(timeout=0.05):
                if stop():
                    break
            if stop():
                log.append(RunStopped(run=run.id, round=done, rounds=run.rounds, reason="on request", seconds=1.0))
                self.store.finish(run, RunStatus.STOPPED, reason=f"stopped on request after round {done}")
                return
            if number == self.fail_at:
                raise RunError("only 0 of 2 clients reported")
            record = self.samples.record(number)
            self.store.commit_round(run, record)
            log.append(RoundCommitted.of(run.id, record, rounds=run.rounds))
            done = number
        adapter = run.folder / "adapter"
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(b"weights" * 100_000)
        (adapter / "adapter_config.json").write_text("{}")
        self.store.finish(run, RunStatus.FINISHED, {"test_accuracy": 0.75})
        figures = {"test_accuracy": 0.75}
        log.append(RunFinished(run=run.id, round=done, rounds=run.rounds, summary=figures, seconds=1.0))


def _opening(run: RunInfo, last: int | None) -> RunStarted | RunResumed:
    facts: dict[str, Any] = {
        "run": run.id,
        "name": run.name,
        "strategy": run.strategy,
        "rounds": run.rounds,
        "clients": 3,
        "cohort": 2,
        "engine": "test",
        "folder": str(run.folder),
    }
    return RunStarted(**facts) if last is None else RunResumed(**facts, round=last)


@dataclass
class Living:
    """A server that runs: what a test needs of it."""

    home: Path
    store: RunStore
    queue: RunQueue
    player: Player
    server: OperatorServer
    token: str

    @property
    def access(self) -> Access:
        """What opens the API."""
        return Access(self.server.url, self.token, self.home / "ca" / "ca.crt")

    def http(self, token: str | None = None, **options: Any) -> httpx.Client:
        """A plain client; token: another than the right one, "" for none."""
        given = self.token if token is None else token
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        context = ssl.create_default_context(cafile=self.home / "ca" / "ca.crt")
        options = {"headers": headers, "base_url": self.server.url, "trust_env": False, "timeout": 20} | options
        return httpx.Client(verify=context, **options)


@contextmanager
def living(home: Path, authority: Path, port: int = 0, *, drive: bool = True, **options: Any) -> Iterator[Living]:
    """Runs a server in `home`; `authority` is a folder that `make_authority` filled."""
    (home / "ca").mkdir(parents=True, exist_ok=True)
    (home / "ca" / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    token = make_token(home / "operator.token")
    with RunStore.open(home / "runs") as store:
        queue, player = RunQueue(store), Player(store)
        driver = Driver(queue, player)
        options = {"clients": lambda: [{"name": "north", "connected": True}]} | options
        app = make_api(queue, store, token, **options)
        thread = threading.Thread(target=driver.run)
        server = OperatorServer(app, "127.0.0.1", port, authority / "server.crt", authority / "server.key")
        with server:
            publish(home, server.url)
            if drive:
                thread.start()
            try:
                yield Living(home, store, queue, player, server, token)
            finally:
                driver.close()
                if drive:
                    thread.join(20)
