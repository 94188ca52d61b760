import base64
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_IMODE

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import IdentityError, StoreError
from fedlora.identity import authority as module
from fedlora.identity.authority import Authority, create_authority, open_authority
from fedlora.identity.keys import certificate_facts, new_key, signing_request

PEM = serialization.Encoding.PEM
REQUEST = signing_request(new_key(), "asked")


def parsed(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_an_authority_is_the_same_after_it_is_opened_again(tmp_path: Path) -> None:
    made = create_authority(tmp_path / "home" / "ca", "hospital group")
    opened = open_authority(tmp_path / "home" / "ca")
    assert opened.certificate == made.certificate
    assert made.issued(opened.sign_client(REQUEST, "clinic-7"))
    modes = {path.name: S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").rglob("*")}
    assert modes["ca"] == 0o700
    assert modes["ca.key"] == 0o600
    assert set(modes) == {"ca", "ca.key", "ca.crt"}


def test_what_the_authoritys_certificate_allows(authority: Authority) -> None:
    certificate = parsed(authority.certificate)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_what_is_signed(authority: Authority) -> None:
    now = datetime.now(UTC)
    client, server = (
        parsed(authority.sign_client(REQUEST, "clinic-7")),
        parsed(authority.sign_server(REQUEST, ["a.org", "::1"])),
    )
    for certificate, days in ((client, 365), (server, 825)):
        assert certificate.not_valid_before_utc <= now - timedelta(minutes=4)
        assert abs(certificate.not_valid_after_utc - now - timedelta(days=days)) < timedelta(minutes=5)
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert certificate.public_key() == x509.load_pem_x509_csr(REQUEST).public_key()
        assert 0 < certificate.serial_number <= 1 << 128
    names = client.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("fedlora:client:clinic-7")]
    assert client.subject.rfc4514_string() == "CN=clinic-7"
    assert certificate_facts(server.public_bytes(PEM)).hosts == ("a.org", "::1")


def test_serial_numbers_are_random(authority: Authority) -> None:
    serials = {parsed(authority.sign_client(REQUEST, "clinic-7")).serial_number for _ in range(20)}
    assert len(serials) == 20
    assert max(serials).bit_length() > 100


def test_nothing_outlives_the_authority(tmp_path: Path) -> None:
    brief = create_authority(tmp_path / "ca", "brief", days=30)
    assert (
        certificate_facts(brief.sign_client(REQUEST, "a")).not_after == certificate_facts(brief.certificate).not_after
    )


def request_with(
    key: object, builder: x509.CertificateSigningRequestBuilder | None = None, algorithm: object = 0
) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    builder = builder or x509.CertificateSigningRequestBuilder().subject_name(name)
    chosen = hashes.SHA256() if algorithm == 0 else algorithm
    return builder.sign(key, chosen).public_bytes(PEM)  # type: ignore[arg-type]


def test_what_a_request_asks_for_is_ignored(authority: Authority) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    greedy = (
        x509.CertificateSigningRequestBuilder(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
    )
    request = request_with(ec.generate_private_key(ec.SECP256R1()), greedy)
    signed = authority.sign_client(request, "clinic-7")
    plain = authority.sign_client(REQUEST, "clinic-7")
    facts = certificate_facts(signed)
    assert (facts.name, facts.is_client, facts.hosts) == ("clinic-7", True, ())
    assert [each.oid for each in parsed(signed).extensions] == [each.oid for each in parsed(plain).extensions]
    assert not parsed(signed).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_that_tls_would_not_take(authority: Authority) -> None:
    keys = [
        (ed25519.Ed25519PrivateKey.generate(), None),
        (rsa.generate_private_key(65537, 2048), 0),
        (ec.generate_private_key(ec.SECP521R1()), 0),
        (ec.generate_private_key(ec.SECP256K1()), 0),
    ]
    for key, algorithm in keys:
        with pytest.raises(IdentityError, match="another kind than is accepted"):
            authority.sign_client(request_with(key, algorithm=algorithm), "clinic-7")


def test_a_request_with_a_weak_hash(authority: Authority) -> None:
    request = request_with(ec.generate_private_key(ec.SECP256R1()), algorithm=hashes.SHA224())
    with pytest.raises(IdentityError, match="weak hash"):
        authority.sign_client(request, "clinic-7")


def test_a_request_must_be_signed_by_its_own_key(authority: Authority) -> None:
    """The key of one request, under the signature of another: whoever sends it need not have the key."""
    ours, theirs = (x509.load_pem_x509_csr(signing_request(new_key(), "clinic-7")) for _ in range(2))
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = ours.public_bytes(serialization.Encoding.DER)
    stolen = der.replace(ours.public_key().public_bytes(*spki), theirs.public_key().public_bytes(*spki))
    assert stolen != der
    with pytest.raises(IdentityError, match="not signed by the key that it asks for"):
        authority.sign_client(csr_text(stolen), "clinic-7")


def csr_text(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize("request_", [b"", b"nonsense", new_key(), b"\0" * 100], ids=["empty", "text", "key", "zeros"])
def test_what_is_no_request(authority: Authority, request_: bytes) -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        authority.sign_client(request_, "clinic-7")


def test_a_large_request_is_not_even_read(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="at most 8,192"):
        authority.sign_client(REQUEST + b"\n" * 8192, "clinic-7")


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_damaged_request_is_refused_or_still_for_its_own_key(authority: Authority, place: int, flip: int) -> None:
    """A single bit around the signature says nothing, and no signature covers it."""
    damaged = bytearray(x509.load_pem_x509_csr(REQUEST).public_bytes(serialization.Encoding.DER))
    damaged[place % len(damaged)] ^= flip
    try:
        signed = authority.sign_client(csr_text(bytes(damaged)), "clinic-7")
    except IdentityError:
        return
    assert parsed(signed).public_key() == x509.load_pem_x509_csr(REQUEST).public_key()


@pytest.mark.parametrize("hosts", [[], ["a b"], ["ok.example", "*"], [f"h{n}" for n in range(101)]])
def test_hosts_that_no_server_has(authority: Authority, hosts: list[str]) -> None:
    with pytest.raises(IdentityError, match="host"):
        authority.sign_server(REQUEST, hosts)


@pytest.mark.parametrize("days", [0, -1, 40_000])
def test_days_that_cannot_be(authority: Authority, days: int) -> None:
    with pytest.raises(IdentityError, match=f"for {days} days"):
        authority.sign_client(REQUEST, "clinic-7", days)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "ü" * 33])
def test_names_that_no_authority_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError, match="cannot name an authority"):
        create_authority(tmp_path / "ca", name)
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = create_authority(tmp_path / "ca", "first")
    with pytest.raises(IdentityError, match="never overwritten"):
        create_authority(tmp_path / "ca", "second")
    assert open_authority(tmp_path / "ca").certificate == made.certificate
    (tmp_path / "file").write_text("mine")
    with pytest.raises(IdentityError, match="is not empty"):
        create_authority(tmp_path / "file", "second")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    with pytest.raises(IdentityError, match="is not empty"):
        create_authority(tmp_path / "other", "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca", "file", "other"]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    create_authority(tmp_path / "ca", "first")
    assert S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_of_many_processes_that_make_one_authority_one_succeeds(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\nfrom fedlora.errors import IdentityError\n"
        "from fedlora.identity.authority import create_authority\nsys.stdin.read()\n"
        "try:\n    sys.stdout.write(create_authority(pathlib.Path(sys.argv[1]), 'x').certificate.decode())\n"
        "except IdentityError as error:\n    sys.stdout.write(str(error))"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, str(tmp_path / "ca")]
    starting = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    said = [process.communicate("")[0] for process in starting]
    made = [text for text in said if text.startswith("-----BEGIN")]
    assert len(made) == 1, said
    assert sum("never overwritten" in text for text in said) == 3
    assert open_authority(tmp_path / "ca").certificate.decode() == made[0]
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


@pytest.mark.parametrize("step", ["write_private", "write_synced", "sync_folder", "_rename"])
def test_a_crash_leaves_no_authority_and_the_next_try_succeeds(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    def no_cleaning(*args: object, **options: object) -> None:
        """A killed process cleans nothing up."""

    monkeypatch.setattr(module, step, killed)
    monkeypatch.setattr(module.shutil, "rmtree", no_cleaning)
    with pytest.raises(KeyboardInterrupt):
        create_authority(tmp_path / "ca", "first")
    with pytest.raises(IdentityError, match="there is no certificate"):
        open_authority(tmp_path / "ca")
    monkeypatch.undo()
    made = create_authority(tmp_path / "ca", "second")
    assert open_authority(tmp_path / "ca").certificate == made.certificate


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_synced", full)
    with pytest.raises(StoreError, match="No space left"):
        create_authority(tmp_path / "ca", "first")
    assert not any(tmp_path.iterdir())


def test_authorities_that_cannot_be_used(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        create_authority(tmp_path / name, name)
    (tmp_path / "a" / "ca.key").chmod(0o644)
    (tmp_path / "b" / "ca.key").unlink()
    (tmp_path / "c" / "ca.key").write_bytes((tmp_path / "d" / "ca.key").read_bytes())
    (tmp_path / "d" / "ca.crt").write_bytes(b"torn")
    key = (tmp_path / "e" / "ca.key").read_bytes()
    leaf = open_authority(tmp_path / "e").sign_client(signing_request(key, "x"), "x")
    (tmp_path / "e" / "ca.crt").write_bytes(leaf)
    found = {
        "a": "chmod 600",
        "b": "there is no key",
        "c": "is not the key of",
        "d": "no certificate",
        "e": "is no authority",
    }
    for name, text in found.items():
        with pytest.raises(IdentityError, match=text):
            open_authority(tmp_path / name)


def test_an_authority_that_has_ended_is_not_opened(tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "old", days=2, now=lambda: datetime.now(UTC) - timedelta(days=3))
    with pytest.raises(IdentityError, match="certificate ended on"):
        open_authority(tmp_path / "ca")


def test_whose_certificate_it_is(authority: Authority, tmp_path: Path) -> None:
    other = create_authority(tmp_path / "ca", "tests")
    signed = authority.sign_client(REQUEST, "clinic-7")
    assert authority.issued(signed)
    assert not other.issued(signed)
    with pytest.raises(IdentityError):
        authority.issued(b"nonsense")
