import base64
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import IdentityError, StoreError
from fedlora.identity import keys
from fedlora.identity.authority import Authority
from fedlora.identity.keys import certificate_facts, new_key, read_private, signing_request, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_key_is_another() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert b"BEGIN PRIVATE KEY" in first


def test_a_private_file_is_private_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    sync = os.fsync

    def spied(descriptor: int) -> None:
        info = os.fstat(descriptor)
        if stat.S_ISREG(info.st_mode):
            seen.append(stat.S_IMODE(info.st_mode))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spied)
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"first")
        write_private(tmp_path / "key", b"second")
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]
    assert read_private(tmp_path / "key") == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert mode(tmp_path / "key") == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "key", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_private(tmp_path / "key", b"new")
    assert (tmp_path / "key").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, loose: int) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "key").chmod(loose)
    with pytest.raises(IdentityError, match=f"chmod 600 {tmp_path / 'key'}") as caught:
        read_private(tmp_path / "key")
    assert "secret" not in str(caught.value)
    (tmp_path / "key").chmod(0o400)
    assert read_private(tmp_path / "key") == b"secret"


def test_files_that_are_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="there is no key in"):
        read_private(tmp_path / "key")
    with pytest.raises(IdentityError, match="there is no certificate in"):
        keys.read_certificate(tmp_path / "crt")
    write_private(tmp_path / "key", b"x" * 100_000)
    with pytest.raises(IdentityError, match="is no key"):
        read_private(tmp_path / "key")


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


def test_keys_that_cannot_be_used() -> None:
    unusable = {
        "no private key": b"nonsense",
        "no private key that": pem_of(ec.generate_private_key(ec.SECP256R1()), b"locked"),
        "not on the curve P-256 or P-384": pem_of(ed25519.Ed25519PrivateKey.generate()),
        "not on the curve": pem_of(ec.generate_private_key(ec.SECP521R1())),
    }
    for text, key in unusable.items():
        with pytest.raises(IdentityError, match=text):
            signing_request(key, "clinic-7")
    with pytest.raises(IdentityError, match="cannot be a client's name"):
        signing_request(new_key(), "Clinic 7")


def test_the_facts_of_a_certificate(authority: Authority) -> None:
    pem = authority.sign_client(signing_request(new_key(), "x"), "clinic-7")
    certificate = x509.load_pem_x509_certificate(pem)
    facts = certificate_facts(pem)
    assert (facts.name, facts.is_client, facts.hosts) == ("clinic-7", True, ())
    assert int(facts.serial, 16) == certificate.serial_number
    assert facts.sha256 == certificate.fingerprint(hashes.SHA256()).hex()
    assert (facts.not_before, facts.not_after) == (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    assert facts.not_before.tzinfo is not None


def self_made(name: str, *alternatives: x509.GeneralName, usages: tuple[x509.ObjectIdentifier, ...]) -> bytes:
    """A certificate such as another authority might make."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin, end = datetime(2031, 5, 6, tzinfo=UTC), datetime(2032, 5, 6, tzinfo=UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 7, begin, end)
    made = made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return (
        made.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


CLIENT, SERVER = x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH
OWN = x509.UniformResourceIdentifier("fedlora:client:clinic-7")


def test_only_a_certificate_for_a_client_alone_is_a_clients() -> None:
    assert certificate_facts(self_made("clinic-7", OWN, usages=(CLIENT,))).is_client
    others = [
        self_made("clinic-8", OWN, usages=(CLIENT,)),
        self_made("clinic-7", OWN, usages=(CLIENT, SERVER)),
        self_made("clinic-7", OWN, usages=(SERVER,)),
        self_made("clinic-7", OWN, x509.DNSName("example.org"), usages=(CLIENT,)),
        self_made("clinic-7", x509.DNSName("clinic-7"), usages=(CLIENT,)),
    ]
    assert not any(certificate_facts(pem).is_client for pem in others)


def test_what_is_no_certificate() -> None:
    with pytest.raises(IdentityError, match="no certificate in PEM form"):
        certificate_facts(new_key())
    with pytest.raises(IdentityError, match="more than 65,536 bytes"):
        certificate_facts(b"x" * 70_000)


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.sign_client(signing_request(new_key(), "x"), "clinic-7"))


# The library warns of some oddities (a serial number of 0) that it still reads.
@pytest.mark.filterwarnings("ignore:.*RFC 5280:cryptography.utils.CryptographyDeprecationWarning")
@given(place=st.integers(0, 10_000), put=st.binary(min_size=1, max_size=3))
def test_a_damaged_certificate_is_refused_or_another_one(certificate: x509.Certificate, place: int, put: bytes) -> None:
    der = certificate.public_bytes(serialization.Encoding.DER)
    place %= len(der)
    damaged = der[:place] + put + der[place + 1 :]
    body = base64.encodebytes(damaged)
    try:
        facts = certificate_facts(b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n")
    except IdentityError:
        return
    assert damaged == der or facts.sha256 != certificate.fingerprint(hashes.SHA256()).hex()
