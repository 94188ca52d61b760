"""Why a server cannot be reached, in words: what gRPC says of a failed connection helps nobody."""

import socket
import ssl
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import InvalidSignature

_SECONDS = 5.0


def diagnose(
    address: str, authority: bytes, *, connect: Callable[..., socket.socket] = socket.create_connection
) -> str:
    """A sentence on what stands between this machine and the server at `address` ("host:port").

    authority: the server's CA certificate, PEM. Only looks: nothing is sent but the beginning of a TLS handshake.
    """
    host, _, port = address.rpartition(":")
    try:
        with connect((host, int(port)), timeout=_SECONDS) as plain:
            return _over(plain, host, address, authority)
    except socket.gaierror:
        return f"the name {host!r} is not known here: check it, and this machine's name service"
    except ConnectionRefusedError:
        return f"nothing listens at {address}: the server is down, or its port is another"
    except (TimeoutError, OSError) as error:
        return (
            f"{address} cannot be reached ({str(error) or 'no answer'}): a firewall may forbid it; if this network"
            " has a proxy, name it with --proxy"
        )


def _over(plain: socket.socket, host: str, address: str, authority: bytes) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is looked at, not trusted
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            shown = secure.getpeercert(binary_form=True) or b""
    except (ssl.SSLError, OSError) as error:
        return f"what answers at {address} speaks no TLS that this client understands ({error})"
    return _judged(x509.load_der_x509_certificate(shown), x509.load_pem_x509_certificate(authority), host, address)


def _judged(shown: x509.Certificate, authority: x509.Certificate, host: str, address: str) -> str:
    try:
        shown.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return (
            f"the certificate at {address} was issued by {shown.issuer.rfc4514_string()!r}, not by the server's own"
            f" authority {authority.subject.rfc4514_string()!r}: a proxy on the way opens TLS (ask that it lets this"
            " address through), or this is another server"
        )
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    if host not in known:
        return f"the server's certificate is for {', '.join(sorted(known))}, not for {host!r}: use one of those names"
    return f"{address} answers, and its certificate is right: the server refused this client's certificate, or is busy"
