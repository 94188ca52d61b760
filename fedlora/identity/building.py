"""The parts that certificates are built of."""

import ipaddress
import secrets
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedlora.errors import IdentityError

_SKEW = timedelta(minutes=5)  # by how much the clocks of others may be behind
_MOST_DAYS = 36500
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def self_signed(key: ec.EllipticCurvePrivateKey, name: str, now: datetime, days: int) -> x509.Certificate:
    """An authority's certificate: it may sign others, which may not sign further ones."""
    return (
        begun(name, key.public_key(), now, now + lifetime(days))
        .issuer_name(subject(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA256())
    )


def begun(name: str, public: ec.EllipticCurvePublicKey, now: datetime, last: datetime) -> x509.CertificateBuilder:
    """What all certificates have: the common name, the key, a random serial number of 128 bits, the days."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .public_key(public)
        .serial_number(1 + secrets.randbits(128))
        .not_valid_before(now - _SKEW)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def subject(name: str) -> x509.Name:
    """The name of a subject or issuer: a common name and nothing else."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(*wanted: str) -> x509.KeyUsage:
    """The extension for these usages and no other."""
    return x509.KeyUsage(**{usage: usage in wanted for usage in _USAGES})


def general_name(host: str) -> x509.GeneralName:
    """A host that `check_host` gave, as a certificate names it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def lifetime(days: int) -> timedelta:
    """The time that a certificate of so many days is valid. Raises IdentityError for less than 1 or over 36,500."""
    if not 0 < days <= _MOST_DAYS:
        raise IdentityError(f"a certificate cannot be made for {days} days: give 1 to {_MOST_DAYS}")
    return timedelta(days=days)
