"""Private keys, requests to sign them, the files they are in, and what a certificate says."""

import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora.errors import IdentityError
from fedlora.identity.names import check_name
from fedlora.server.durable import explained, sync_folder

CLIENT_URI = "fedlora:client:"
"""Before the client's name in the URI of its certificate."""

PARSING_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for texts that are no keys, certificates or requests; they have no common ancestor."""

_LARGEST = 64 * 1024  # bytes of a key or certificate file; ours have about 1 KiB


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says; nothing here was verified, a TLS handshake or `Authority` does that.

    name: its common name. serial, sha256: hexadecimal; the hash is of the DER form. not_before, not_after: UTC.
    is_client: it is for a client of that name and for nothing else. hosts: where a server with it is reached.
    """

    name: str
    serial: str
    sha256: str
    not_before: datetime
    not_after: datetime
    is_client: bool
    hosts: tuple[str, ...] = ()


def new_key() -> bytes:
    """A new private key on the curve P-256: PKCS #8, PEM, not encrypted."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def parse_key(key: bytes) -> ec.EllipticCurvePrivateKey:
    """The key in a PEM text. Raises IdentityError unless it is an unencrypted one on P-256 or P-384."""
    try:
        found = serialization.load_pem_private_key(key, password=None)
    except PARSING_ERRORS as error:
        raise IdentityError(
            f"this is no private key that fedlora can use ({error}): restore it, or enrol anew"
        ) from error
    if not isinstance(found, ec.EllipticCurvePrivateKey) or not accepted_curve(found.curve):
        raise IdentityError("the private key is not on the curve P-256 or P-384: TLS here takes no other; enrol anew")
    return found


def accepted_curve(curve: ec.EllipticCurve) -> bool:
    """Whether the TLS library of gRPC takes keys on `curve`."""
    return isinstance(curve, ec.SECP256R1 | ec.SECP384R1)


def signing_request(key: bytes, name: str) -> bytes:
    """A request (PKCS #10, PEM) to certify the key in the PEM text `key`; whoever signs decides on the name.

    Raises IdentityError for a key that cannot be used, or a name that is no client's.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(parse_key(key), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def write_private(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, whole or not at all, durable, and at no moment readable by others (mode 0600).

    Raises StoreError if it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained("write", path, needed=len(data)):
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def read_private(path: Path) -> bytes:
    """What is in `path`.

    Raises IdentityError if there is no such file, others than its owner may use it, or it is too large to be a key;
    StoreError if it cannot be read.
    """
    with explained("read", path):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise IdentityError(f"there is no key in {path}: restore it, or enrol anew") from error
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_mode & 0o077:
                raise IdentityError(
                    f"{path} can be used by others than its owner, who could pose as this host: chmod 600 {path}"
                )
            return _bounded(file.read(_LARGEST + 1), str(path))


def parse_certificate(pem: bytes) -> x509.Certificate:
    """The certificate in a PEM text. Raises IdentityError if there is none."""
    try:
        return x509.load_pem_x509_certificate(_bounded(pem, "a certificate"))
    except PARSING_ERRORS as error:
        raise IdentityError(
            f"this is no certificate in PEM form ({error}): restore it, or ask for a new one"
        ) from error


def read_certificate(path: Path) -> bytes:
    """The text of a certificate's file. Raises IdentityError if there is none, StoreError if it cannot be read."""
    with explained("read", path):
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise IdentityError(
                f"there is no certificate in {path}: `fedlora ca init` makes a server's, a client gets one when it"
                " enrols; or restore it from a backup"
            ) from error


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that its holder may sign others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *PARSING_ERRORS):
        return False


def certificate_facts(pem: bytes) -> CertificateFacts:
    """What the certificate in a PEM text says. Raises IdentityError if it cannot be read."""
    certificate = parse_certificate(pem)
    try:
        name = _common_name(certificate)
        return CertificateFacts(
            name=name,
            serial=f"{certificate.serial_number:x}",
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            is_client=_is_client(certificate, name),
            hosts=_hosts(_alternatives(certificate)),
        )
    except PARSING_ERRORS as error:
        raise IdentityError(f"a certificate has parts that cannot be read ({error}): ask for a new one") from error


def _common_name(certificate: x509.Certificate) -> str:
    """The one common name; "" where there is none, or several."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def _is_client(certificate: x509.Certificate, name: str) -> bool:
    alternatives = _alternatives(certificate)
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    only_name = len(list(alternatives)) == 1 and uris == [CLIENT_URI + name]
    return only_name and _usages(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def _usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _alternatives(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def _hosts(alternatives: x509.SubjectAlternativeName) -> tuple[str, ...]:
    addresses = map(str, alternatives.get_values_for_type(x509.IPAddress))
    return (*alternatives.get_values_for_type(x509.DNSName), *addresses)


def _bounded(data: bytes, what: str) -> bytes:
    if len(data) > _LARGEST:
        raise IdentityError(f"{what} has more than {_LARGEST:,} bytes: that is no key or certificate")
    return data
