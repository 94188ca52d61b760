"""What the certificates are for: who can talk to whom over TLS."""

import threading
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlora.errors import IdentityError
from fedlora.identity.authority import Authority, create_authority
from fedlora.identity.keys import certificate_facts, new_key, parse_certificate, parse_key, signing_request
from tests.identity.handshakes import Outcome, shake

Pair = tuple[bytes, bytes]


def server_pair(authority: Authority, *hosts: str) -> Pair:
    key = new_key()
    return key, authority.sign_server(signing_request(key, "server"), hosts or ("localhost", "127.0.0.1"))


def client_pair(authority: Authority, name: str = "clinic-7") -> Pair:
    key = new_key()
    return key, authority.sign_client(signing_request(key, "asked-for-another"), name)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, of the same name."""
    return create_authority(tmp_path_factory.mktemp("foreign") / "ca", "tests")


@pytest.fixture
def earlier(tmp_path: Path) -> Authority:
    """An authority that still holds and signs as if it were three years ago."""
    return create_authority(tmp_path / "earlier", "tests", now=lambda: datetime.now(UTC) - timedelta(days=3 * 365))


def meet(folder: Path, authority: Authority, server: Pair, client: Pair, host: str = "localhost") -> Outcome:
    return shake(folder, authority.certificate, server, client, host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_and_a_client_of_one_authority_agree(tmp_path: Path, authority: Authority, host: str) -> None:
    client = client_pair(authority)
    found = meet(tmp_path, authority, server_pair(authority), client, host)
    assert found.agreed, found
    facts = certificate_facts(client[1])
    assert (facts.name, facts.is_client) == ("clinic-7", True)


def test_the_server_must_be_the_host_that_was_called(tmp_path: Path, authority: Authority) -> None:
    found = meet(tmp_path, authority, server_pair(authority, "example.org", "10.0.0.1"), client_pair(authority))
    assert "Hostname mismatch" in found.client


def test_a_foreign_authority_is_refused(tmp_path: Path, authority: Authority, foreign: Authority) -> None:
    by_client = meet(tmp_path, authority, server_pair(foreign), client_pair(authority))
    assert "certificate verify failed" in by_client.client
    by_server = meet(tmp_path, authority, server_pair(authority), client_pair(foreign))
    assert "certificate verify failed" in by_server.server
    assert not by_server.shown


def test_expired_certificates_are_refused(tmp_path: Path, earlier: Authority) -> None:
    key = new_key()
    request = signing_request(key, "any")
    lasting = (key, earlier.sign_client(request, "clinic-7", days=3000))
    also_lasting = (key, earlier.sign_server(request, ["localhost"], days=3000))
    assert meet(tmp_path, earlier, also_lasting, lasting).agreed
    assert "certificate has expired" in meet(tmp_path, earlier, also_lasting, client_pair(earlier)).server
    assert "certificate has expired" in meet(tmp_path, earlier, server_pair(earlier), lasting).client


def test_an_expired_authority_is_refused_and_signs_no_more(tmp_path: Path) -> None:
    times = [datetime.now(UTC) - timedelta(days=3)]
    brief = create_authority(tmp_path / "brief", "tests", days=2, now=lambda: times[0])
    server, client = server_pair(brief), client_pair(brief)
    assert "certificate has expired" in meet(tmp_path, brief, server, client).client
    times[0] = datetime.now(UTC)
    with pytest.raises(IdentityError, match="authority's certificate ended on"):
        client_pair(brief)


def test_a_certificate_serves_one_role(tmp_path: Path, authority: Authority) -> None:
    """A client cannot pose as the server before other clients, nor the server's certificate open a client's door."""
    key = new_key()
    request = signing_request(key, "localhost")
    client, server = (key, authority.sign_client(request, "localhost")), server_pair(authority)
    posing = meet(tmp_path, authority, client, client_pair(authority))
    assert "unsuitable certificate purpose" in posing.client
    reverse = meet(tmp_path, authority, server, server)
    assert "unsuitable certificate purpose" in reverse.server
    assert not certificate_facts(server[1]).is_client


def test_a_client_cannot_sign_for_others(tmp_path: Path, authority: Authority) -> None:
    """A certificate made with a client's key, and shown with the client's own certificate, leads nowhere."""
    key, certificate = client_pair(authority)
    rogue = Authority(parse_key(key), parse_certificate(certificate))
    forged_key, forged = client_pair(rogue, "clinic-8")
    found = meet(tmp_path, authority, server_pair(authority), (forged_key, forged + certificate))
    assert "certificate verify failed" in found.server
    assert not found.shown


class Greeter(grpc.GenericRpcHandler):
    """Answers every call with the certificate that the caller showed."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.auth_context()["x509_pem_cert"][0])


@pytest.fixture
def port(authority: Authority) -> Iterator[int]:
    """A gRPC server that demands a certificate from its clients."""
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Greeter()])
        pairs = [server_pair(authority)]
        credentials = grpc.ssl_server_credentials(pairs, authority.certificate, require_client_auth=True)
        number = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield number
        stopped: threading.Event = server.stop(None)
        stopped.wait()


def call(port: int, roots: bytes, pair: Pair) -> bytes:
    credentials = grpc.ssl_channel_credentials(roots, *pair)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        answer: bytes = channel.unary_unary("/any/Method")(b"", timeout=20)
        return answer


def test_the_tls_of_grpc_takes_them_too(port: int, authority: Authority) -> None:
    pair = client_pair(authority)
    facts = certificate_facts(call(port, authority.certificate, pair))
    assert facts.is_client
    assert facts == certificate_facts(pair[1])


def test_the_tls_of_grpc_takes_the_other_curve_that_is_accepted(port: int, authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair = (key, authority.sign_client(signing_request(key, "clinic-7"), "clinic-7"))
    assert call(port, authority.certificate, pair) == pair[1]


def test_the_tls_of_grpc_refuses_foreign_ones_and_servers(port: int, authority: Authority, foreign: Authority) -> None:
    for pair in (client_pair(foreign), server_pair(authority)):
        with pytest.raises(grpc.RpcError):
            call(port, authority.certificate, pair)
    with pytest.raises(grpc.RpcError):
        call(port, foreign.certificate, client_pair(authority))
