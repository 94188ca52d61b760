"""Who may come in, and as whom: certificates on the link's port, tokens on the port for strangers."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from fedlora.client import identity as client_identity
from fedlora.client.home import SiteHome
from fedlora.errors import IdentityError, LinkError, StoreError
from fedlora.identity import enrolment as steps
from fedlora.identity.authority import create_authority, open_authority
from fedlora.identity.keys import certificate_facts, new_key, signing_request
from fedlora.identity.registry import Registry
from fedlora.identity.tokens import Invitation
from fedlora.link import enrolment, limits
from fedlora.link.enrolment import EnrolmentService, enrolment_server, place
from fedlora.link.host import LinkHost
from fedlora.link.v1.link_pb2 import Certificate, FromClient, IsOpen, JoinRequest, RenewRequest
from fedlora.server.store.database import Database
from tests.link.http2 import NO_WINDOW, closed, frame, headers
from tests.link.raw import Raw, hello, pair, tls
from tests.link.siege import Siege, besieged
from tests.link.world import World, eventually, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    database = Database(sa.URL.create("sqlite", database=str(tmp_path / "fedlora.db")), tmp_path)
    yield Registry(database)
    database.close()


def enrolled(world: World, registry: Registry, name: str) -> tuple[bytes, bytes]:
    """Key and certificate of a client that has joined."""
    key = new_key()
    issued = steps.join(registry, world.authority, registry.invite(name, again=True), signing_request(key, name))
    return key, issued.certificate


@pytest.fixture
def siege(world: World, registry: Registry) -> Iterator[Siege]:
    """A server that asks the registry; the honest client is one whom nobody asks."""

    def admit(name: str, certificate: bytes) -> None:
        if name != "site-0":
            steps.admit(registry, name, certificate)

    with besieged(world, admit=admit) as found:
        yield found


# Certificates.


def test_who_has_joined_comes_in(siege: Siege, world: World, registry: Registry) -> None:
    """Else the refusals below would prove nothing."""
    with Raw(world, shown=enrolled(world, registry, "site-1")) as raw:
        raw.connected()
        eventually(lambda: "site-1" in siege.host.hub.connected())


def stranger(world: World, folder: Path) -> tuple[bytes, bytes]:
    """Of an authority that calls itself as the right one does."""
    return pair(World(folder, create_authority(folder / "other", "test")), "site-1")


def expired(world: World, folder: Path) -> tuple[bytes, bytes]:
    begun = datetime.now(UTC) - timedelta(days=400)
    key = new_key()
    long_ago = open_authority(folder / "ca", now=lambda: begun)
    return key, long_ago.sign_client(signing_request(key, "site-1"), "site-1", days=365)


def to_come(world: World, folder: Path) -> tuple[bytes, bytes]:
    key = new_key()
    later = open_authority(folder / "ca", now=lambda: datetime.now(UTC) + timedelta(days=2))
    return key, later.sign_client(signing_request(key, "site-1"), "site-1")


def of_a_server(world: World, folder: Path) -> tuple[bytes, bytes]:
    key = new_key()
    return key, world.authority.sign_server(signing_request(key, "site-1"), ["localhost"])


def of_the_authority(world: World, folder: Path) -> tuple[bytes, bytes]:
    return (folder / "ca" / "ca.key").read_bytes(), world.authority.certificate


@pytest.mark.parametrize("make", [stranger, expired, to_come, of_a_server, of_the_authority])
def test_a_certificate_that_is_not_a_clients_opens_no_connection(
    siege: Siege, world: World, tmp_path: Path, make: Callable[[World, Path], tuple[bytes, bytes]]
) -> None:
    with Raw(world, shown=make(world, tmp_path)) as raw:
        raw.say(hello())
        assert raw.ended().startswith("UNAVAILABLE")
    assert list(siege.host.hub.presences) == ["site-0"]
    siege.check_honest()


def test_no_certificate_opens_no_connection(siege: Siege, world: World, tmp_path: Path) -> None:
    context = tls(world, tmp_path, site=None)
    with pytest.raises(OSError, match=r"certificate|closed|reset"):
        heard(world, context)
    siege.check_honest()


def heard(world: World, context: ssl.SSLContext) -> bytes:
    """What the server says after the handshake. With TLS 1.3 only then does a client learn that it was refused."""
    with (
        socket.create_connection(("localhost", world.port), 10.0) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        if found := secure.recv(1000):
            return found
        raise OSError("closed without a word")


def test_plaintext_opens_no_connection(siege: Siege, world: World) -> None:
    with grpc.insecure_channel(f"localhost:{world.port}") as channel:
        connect = channel.stream_stream("/fedlora.v1.Link/Connect", FromClient.SerializeToString, bytes)
        with pytest.raises(grpc.RpcError) as refused:
            next(connect(iter([hello()]), timeout=5.0))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    siege.check_honest()


def handshake(world: World, folder: Path, version: ssl.TLSVersion) -> str:
    context = tls(world, folder)
    context.set_ciphers("ALL:@SECLEVEL=0")  # this side would speak anything
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("localhost", world.port), 10.0) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return str(secure.version())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused(siege: Siege, world: World, tmp_path: Path, version: ssl.TLSVersion) -> None:
    assert handshake(world, tmp_path, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert handshake(world, tmp_path, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(OSError, match=r"(?i)protocol|version|reset"):
        handshake(world, tmp_path, version)
    siege.check_honest()


def test_whom_the_registry_does_not_know_is_told_so_and_may_not_come_back(siege: Siege, world: World) -> None:
    with Raw(world) as raw:
        goodbye = raw.hear("goodbye")
        assert "no client 'site-1' is registered here" in goodbye.reason
        assert not goodbye.retry
    siege.check_honest()


def test_a_certificate_that_was_taken_away_or_is_of_another_name_is_refused(
    siege: Siege, world: World, registry: Registry
) -> None:
    old = enrolled(world, registry, "site-1")
    enrolled(world, registry, "site-1")
    with Raw(world, shown=old) as raw:
        assert "was taken away" in raw.hear("goodbye").reason
    siege.check_honest()


def test_a_revoked_client_is_refused_when_it_comes_and_ended_when_it_is_there(
    siege: Siege, world: World, registry: Registry
) -> None:
    """That the server looks for revocations while clients are connected is a test of the daemon; this is its tool."""
    shown = enrolled(world, registry, "site-1")
    with Raw(world, shown=shown) as raw:
        raw.connected()
        collect = siege.ask(0, 1)
        offer = raw.hear("offer")
        registry.revoke("site-1", "its host was stolen")

        async def dismiss() -> None:
            siege.host.hub.dismiss("site-1", "revoked")

        siege.host.call(dismiss())
        goodbye = raw.hear("goodbye")
        assert (goodbye.reason, goodbye.retry) == ("revoked", False)
        raw.say(FromClient(is_open=IsOpen(work=offer.work)))
        raw.ended()
        lost = collect()[1]
        assert lost.has_error()
    with Raw(world, shown=shown) as raw:
        assert "was revoked (its host was stolen)" in raw.hear("goodbye").reason
    assert renewal(world, shown) == "PERMISSION_DENIED"
    siege.check_honest()


def renewal(world: World, shown: tuple[bytes, bytes]) -> str:
    credentials = grpc.ssl_channel_credentials(world.authority.certificate, *shown)
    with grpc.secure_channel(f"localhost:{world.port}", credentials) as channel:
        renew = channel.unary_unary("/fedlora.v1.Link/Renew", RenewRequest.SerializeToString, Certificate.FromString)
        with pytest.raises(grpc.RpcError) as refused:
            renew(RenewRequest(signing_request=b"x"), timeout=10.0)
    return str(refused.value.code().name)


# Two with one name.


def test_a_second_one_takes_the_place_of_a_first_that_does_not_answer(
    siege: Siege, world: World, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = enrolled(world, registry, "site-1")
    monkeypatch.setattr(limits, "HEARTBEAT", 2.0)
    with Raw(world, shown=shown) as dead, Raw(world, shown=shown, answers=True) as living:
        dead.say(hello(instance="dead"))
        eventually(lambda: "site-1" in siege.host.hub.connected())
        living.say(hello(instance="living"))
        assert dead.hear("goodbye").reason == "the same client has connected anew"
        eventually(lambda: siege.host.hub.presences["site-1"].connection.hello.instance == "living")  # type: ignore[union-attr]
        with Raw(world, shown=shown) as third:
            third.say(hello(instance="third"))
            goodbye = third.hear("goodbye")
            assert "connected already, from another process" in goodbye.reason
            assert not goodbye.retry


def test_of_two_who_come_at_once_for_the_place_of_a_dead_one_one_gets_it(
    siege: Siege, world: World, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = enrolled(world, registry, "site-1")
    monkeypatch.setattr(limits, "HEARTBEAT", 1.0)
    with ExitStack() as stack:
        dead = stack.enter_context(Raw(world, shown=shown))
        dead.say(hello(instance="dead"))
        eventually(lambda: "site-1" in siege.host.hub.connected())
        both = [stack.enter_context(Raw(world, shown=shown, answers=True)) for _ in range(2)]
        for number, raw in enumerate(both):
            raw.say(hello(instance=f"number {number}"))
        for raw in both:
            raw.hear("welcome")
        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(lambda raw: goodbye_within(raw, 3.0), both))
        assert sorted("connected already" in end for end in ends) == [False, True]


def goodbye_within(raw: Raw, seconds: float) -> str:
    try:
        return str(raw.hear("goodbye", seconds).reason)
    except AssertionError:
        return ""


# Joining.


JOIN = "/fedlora.v1.Enrolment/Join"
Join = Callable[[str, bytes], steps.Issued]


@dataclass
class Office:
    """An enrolment server, and the registry behind it."""

    world: World
    registry: Registry
    port: int

    def join(self, token: str, request: bytes | None = None, **how: Any) -> Certificate:
        """One stranger's call."""
        credentials = grpc.ssl_channel_credentials(self.world.authority.certificate)
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"localhost:{self.port}", credentials, options=options) as channel:
            ask = channel.unary_unary(
                "/fedlora.v1.Enrolment/Join", JoinRequest.SerializeToString, Certificate.FromString
            )
            asked = JoinRequest(token=token, signing_request=new_request() if request is None else request)
            return ask(asked, timeout=20.0, **how)  # type: ignore[no-any-return]

    def refused(self, token: str, request: bytes | None = None, **how: Any) -> str:
        """Why a call was refused."""
        with pytest.raises(grpc.RpcError) as error:
            self.join(token, request, **how)
        return f"{error.value.code().name}: {error.value.details()}"


def new_request(name: str = "any") -> bytes:
    return signing_request(new_key(), name)


@contextmanager
def opened(world: World, registry: Registry, join: Join | None = None) -> Iterator[Office]:
    """An enrolment port as a daemon opens it."""
    key = new_key()
    certificate = world.authority.sign_server(signing_request(key, "server"), ["localhost"])
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    real = join or (lambda secret, request: steps.join(registry, world.authority, secret, request))

    async def start() -> tuple[Any, int]:
        server, port = enrolment_server(EnrolmentService(real, ":9092"), credentials, "localhost:0")
        await server.start()
        return server, port

    with LinkHost() as host:
        server, port = host.call(start())
        try:
            yield Office(world, registry, port)
        finally:
            host.call(server.stop(None))


@pytest.fixture
def office(world: World, registry: Registry) -> Iterator[Office]:
    with opened(world, registry) as found:
        yield found


def test_a_token_gives_one_certificate_for_its_own_name_whatever_the_request_says(office: Office) -> None:
    token = office.registry.invite("site-1")
    given = office.join(token, new_request("site-2"))
    assert (given.name, given.link) == ("site-1", ":9092")
    assert certificate_facts(given.certificate).name == "site-1"
    assert certificate_facts(given.certificate).is_client
    assert "was used before" in office.refused(token)
    assert [record.name for record in office.registry.clients()] == ["site-1"]


def test_tokens_that_are_wrong_expired_or_withdrawn_are_refused_alike(office: Office) -> None:
    good = office.registry.invite("site-1", hours=0.0001)
    withdrawn = office.registry.invite("site-2")
    office.registry.invite("site-2")
    time.sleep(0.5)
    reasons = {office.refused(token) for token in ("", "x" * 43, good, withdrawn, good[:-1], good.upper(), "é" * 43)}
    assert len(reasons) == 1
    assert reasons.pop().startswith("PERMISSION_DENIED: this token cannot be used")


def test_a_request_that_cannot_be_signed_uses_no_token_up(office: Office) -> None:
    token = office.registry.invite("site-1")
    assert "cannot be read" in office.refused(token, b"\xff" * 100)
    assert "cannot be read" in office.refused(token, b"")
    assert "at most 8,192 are read" in office.refused(token, b"x" * 8193)
    assert office.refused(token, b"x" * 40_000).startswith("RESOURCE_EXHAUSTED")
    assert office.refused("x" * 40_000).startswith("RESOURCE_EXHAUSTED")
    assert office.refused(token, b"\0" * 30_000, compression=grpc.Compression.Gzip).startswith("UNIMPLEMENTED")
    assert office.join(token).name == "site-1"


def test_ten_failures_close_the_address_even_for_who_has_a_token(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = office.registry.invite("site-1")
    for _ in range(enrolment.FAILURES):
        assert office.refused("x" * 43).startswith("PERMISSION_DENIED")
    assert office.refused(token).startswith("RESOURCE_EXHAUSTED: too many refused tokens")
    assert office.refused(token, b"").startswith("RESOURCE_EXHAUSTED: too many refused tokens")


def test_the_address_is_open_again_when_the_time_has_passed(
    world: World, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "WINDOW", 1.0)
    with opened(world, registry) as office:
        token = registry.invite("site-1")
        for _ in range(enrolment.FAILURES):
            office.refused("x")
        assert "too many" in office.refused(token)
        time.sleep(1.0)
        assert office.join(token).name == "site-1"


def test_a_flood_from_many_threads_gives_one_certificate(office: Office) -> None:
    token = office.registry.invite("site-1")

    def attempt(number: int) -> str:
        try:
            return office.join(token if number % 4 == 0 else "x" * 43).name
        except grpc.RpcError as error:
            return str(error.code().name)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, range(40)))
    assert found.count("site-1") == 1
    assert set(found) <= {"site-1", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (IdentityError("no"), "PERMISSION_DENIED: no"),
        (StoreError("cannot read /srv/fedlora/fedlora.db"), "INTERNAL: the server cannot enrol a client now"),
        (ZeroDivisionError("/srv/fedlora"), "INTERNAL: the server cannot enrol a client now"),
    ],
)
def test_what_goes_wrong_inside_is_not_told_outside(
    world: World, registry: Registry, fault: Exception, told: str
) -> None:
    def join(secret: str, request: bytes) -> steps.Issued:
        raise fault

    with opened(world, registry, join) as office:
        reason = office.refused("x")
        assert reason.startswith(told)
        assert "/srv" not in reason


def test_a_client_whose_reply_was_lost_asks_again_and_comes_in(
    world: World, registry: Registry, siege: Siege, tmp_path: Path
) -> None:
    """As its owner would: the same command once more. Another who has seen the token gets nothing."""
    lost = [True]

    def join(secret: str, request: bytes) -> steps.Issued:
        issued = steps.join(registry, world.authority, secret, request)
        if lost.pop() if lost else False:
            raise OSError("the line breaks")  # the token is used, and the certificate on record
        return issued

    home, other = (SiteHome.create(tmp_path / name) for name in ("home", "other"))
    expires = datetime.now(UTC) + timedelta(hours=1)
    with opened(world, registry, join) as office:
        secret = registry.invite("site-1", hours=1)
        invitation = Invitation(
            "site-1", f"localhost:{office.port}", world.authority.certificate, secret, expires.replace(microsecond=0)
        )
        with pytest.raises(LinkError, match="could not be asked"):
            client_identity.join(home, invitation)
        with pytest.raises(IdentityError, match="this token cannot be used"):
            client_identity.join(other, invitation)
        assert client_identity.join(home, invitation) == "localhost:9092"
        found = client_identity.credentials(home)
        with Raw(world, shown=(found.key, found.certificate)) as raw:
            raw.connected()
            eventually(lambda: "site-1" in siege.host.hub.connected())
        for place in (home, other):
            with pytest.raises(IdentityError, match="this token cannot be used"):
                client_identity.join(place, invitation)


def test_who_reads_no_reply_does_not_keep_others_out(
    world: World, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes up a call; when all are taken, others wait. So a call must end even if its reply is not read."""
    quick = {"grpc.max_connection_age_ms": 1000, "grpc.max_connection_age_grace_ms": 500}
    monkeypatch.setattr(enrolment, "OPTIONS", tuple((name, quick.get(name, v)) for name, v in enrolment.OPTIONS))
    monkeypatch.setattr(enrolment, "CALLS", 4)
    with opened(world, registry) as office, ExitStack() as stack:
        context = tls(world, tmp_path, site=None)
        for number in range(4):
            plain = stack.enter_context(socket.create_connection(("localhost", office.port), 10.0))
            held = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
            asked = JoinRequest(token=registry.invite(f"other-{number}"), signing_request=new_request())
            data = asked.SerializeToString()
            held.sendall(NO_WINDOW + headers(1, **{":path": JOIN}))
            held.sendall(frame(0, b"\0" + len(data).to_bytes(4, "big") + data, flags=1, stream=1))
        eventually(lambda: sum(record.status == "active" for record in registry.clients()) == 4)
        token = registry.invite("site-1")
        assert "Concurrent RPC limit" in office.refused(token)
        assert closed(held)
        eventually(lambda: joins(office, token))


def joins(office: Office, token: str) -> bool:
    try:
        return office.join(token).name == "site-1"
    except grpc.RpcError:
        return False


def test_the_shipped_limits_end_every_strangers_connection() -> None:
    found = dict(enrolment.OPTIONS)
    assert found["grpc.max_connection_age_ms"] + found["grpc.max_connection_age_grace_ms"] <= 30_000


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        ("ipv4:192.0.2.7:5000", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::1%5D:5001", "2001:db8:1:2::/64"),
        ("ipv6:[::1]:5000", "::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:5000", "192.0.2.7"),
        ("unix:", ""),
        ("unknown", ""),
    ],
)
def test_failures_are_counted_by_what_one_host_has(peer: str, found: str) -> None:
    assert place(peer) == found
