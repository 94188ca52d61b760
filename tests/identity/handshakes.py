"""Real TLS handshakes on the loopback, with Python's own TLS."""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection, create_server, socket

from fedlora.identity.keys import write_private

PATIENCE = 20.0


@dataclass
class Outcome:
    """Whether each side took the other for good, and the client's certificate (DER) as the server saw it."""

    server: str = ""
    client: str = ""
    shown: bytes = b""

    @property
    def agreed(self) -> bool:
        return not self.server and not self.client and bool(self.shown)


def shake(folder: Path, roots: bytes, server: tuple[bytes, bytes], client: tuple[bytes, bytes], host: str) -> Outcome:
    """One connection. server, client: key and certificate. roots: the authority that both trust."""
    outcome = Outcome()
    with create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        context = _context(ssl.PROTOCOL_TLS_SERVER, folder, "server", roots, server)
        serving = threading.Thread(target=_serve, args=(listening, context, outcome))
        serving.start()
        _call(
            listening.getsockname(), _context(ssl.PROTOCOL_TLS_CLIENT, folder, "client", roots, client), host, outcome
        )
        serving.join(PATIENCE)
    assert not serving.is_alive()
    return outcome


def _context(kind: int, folder: Path, who: str, roots: bytes, pair: tuple[bytes, bytes]) -> ssl.SSLContext:
    write_private(folder / f"{who}.key", pair[0])
    (folder / f"{who}.crt").write_bytes(pair[1])
    context = ssl.SSLContext(kind)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    context.load_verify_locations(cadata=roots.decode())
    context.load_cert_chain(folder / f"{who}.crt", folder / f"{who}.key")
    return context


def _serve(listening: socket, context: ssl.SSLContext, outcome: Outcome) -> None:
    try:
        plain, _ = listening.accept()
        plain.settimeout(PATIENCE)
        with plain, context.wrap_socket(plain, server_side=True) as connection:
            outcome.shown = connection.getpeercert(binary_form=True) or b""
            connection.sendall(b"!")
    except OSError as error:
        outcome.server = str(error)


def _call(address: tuple[str, int], context: ssl.SSLContext, host: str, outcome: Outcome) -> None:
    try:
        with (
            create_connection(address, PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            # With TLS 1.3 the client is done before the server has looked at its certificate.
            outcome.client = "" if connection.recv(1) == b"!" else "hung up"
    except OSError as error:
        outcome.client = str(error)
