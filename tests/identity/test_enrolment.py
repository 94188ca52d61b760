"""Joining, connecting, renewing: the steps together, with real certificates."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedlora.errors import IdentityError
from fedlora.identity.authority import Authority, create_authority
from fedlora.identity.enrolment import admit, join, renew
from fedlora.identity.keys import certificate_facts, new_key, parse_certificate, signing_request
from fedlora.identity.registry import Registry
from tests.identity.conftest import Hands


def request(name: str = "any") -> bytes:
    return signing_request(new_key(), name)


def digest(certificate: bytes) -> str:
    return certificate_facts(certificate).sha256


def test_a_client_joins_connects_and_renews(registry: Registry, authority: Authority) -> None:
    issued = join(registry, authority, registry.invite("clinic-7"), request("another"))
    assert (issued.name, issued.authority) == ("clinic-7", authority.certificate)
    assert certificate_facts(issued.certificate).name == "clinic-7"
    admit(registry, "clinic-7", issued.certificate)
    newer = renew(registry, authority, "clinic-7", digest(issued.certificate), request())
    admit(registry, "clinic-7", issued.certificate)
    admit(registry, "clinic-7", newer.certificate)
    with pytest.raises(IdentityError, match="was replaced"):
        admit(registry, "clinic-7", issued.certificate)


def test_a_request_that_is_refused_uses_no_token_up(registry: Registry, authority: Authority) -> None:
    secret = registry.invite("clinic-7")
    with pytest.raises(IdentityError, match="cannot be read"):
        join(registry, authority, secret, b"nonsense")
    with pytest.raises(IdentityError, match="token cannot be used"):
        join(registry, authority, secret, request(), name_hint="clinic-8")
    assert join(registry, authority, secret, request(), name_hint="clinic-7").name == "clinic-7"


def test_an_authority_that_has_ended_uses_no_token_up(registry: Registry, tmp_path: Path) -> None:
    moments = [datetime.now(UTC)]
    brief = create_authority(tmp_path / "ca", "brief", days=1, now=lambda: moments[0])
    secret = registry.invite("clinic-7")
    moments[0] += timedelta(days=2)
    with pytest.raises(IdentityError, match="certificate ended on"):
        join(registry, brief, secret, request())
    moments[0] -= timedelta(days=2)
    assert join(registry, brief, secret, request()).name == "clinic-7"


def test_one_token_gives_one_certificate_however_many_ask(registry: Registry, authority: Authority) -> None:
    secret = registry.invite("clinic-7")

    def ask(_: int) -> bytes:
        try:
            return join(registry, authority, secret, request()).certificate
        except IdentityError:
            return b""

    with ThreadPoolExecutor(6) as pool:
        given = [certificate for certificate in pool.map(ask, range(6)) if certificate]
    assert len(given) == 1
    admit(registry, "clinic-7", given[0])


def test_a_stolen_certificate_is_worth_nothing_once_its_owner_has_joined_anew(
    registry: Registry, authority: Authority
) -> None:
    stolen = join(registry, authority, registry.invite("clinic-7"), request()).certificate
    admit(registry, "clinic-7", stolen)
    join(registry, authority, registry.invite("clinic-7", again=True), request())
    with pytest.raises(IdentityError, match="was taken away"):
        renew(registry, authority, "clinic-7", digest(stolen), request())


def test_what_the_server_did_not_record_does_not_open_the_door(registry: Registry, authority: Authority) -> None:
    """Signed by the right authority for the right name, but behind the registry's back."""
    join(registry, authority, registry.invite("clinic-7"), request())
    with pytest.raises(IdentityError, match="not on record"):
        admit(registry, "clinic-7", authority.sign_client(request(), "clinic-7"))


def test_the_name_must_be_the_certificates(registry: Registry, authority: Authority) -> None:
    given = {name: join(registry, authority, registry.invite(name), request()).certificate for name in ("a", "b")}
    with pytest.raises(IdentityError, match="'a' shows a certificate of 'b'"):
        admit(registry, "a", given["b"])
    with pytest.raises(IdentityError, match="not for a client"):
        admit(registry, "fedlora server", authority.sign_server(request(), ["localhost"]))
    with pytest.raises(IdentityError, match="no certificate"):
        admit(registry, "a", b"")


# A reply that was lost.


def test_whoever_did_not_get_the_reply_asks_again_with_the_same_key(registry: Registry, authority: Authority) -> None:
    secret, key = registry.invite("clinic-7"), new_key()
    given = [join(registry, authority, secret, signing_request(key, "clinic-7")).certificate for _ in range(3)]
    assert len(set(given)) == 3
    public = {parse_certificate(certificate).public_key().public_numbers() for certificate in given}
    assert len(public) == 1
    with pytest.raises(IdentityError, match="not on record"):  # it did not arrive: nobody has it
        admit(registry, "clinic-7", given[1])
    admit(registry, "clinic-7", given[2])
    (record,) = registry.clients()
    assert record.certificate == digest(given[2])


def test_a_used_token_is_worth_nothing_with_another_key(registry: Registry, authority: Authority) -> None:
    secret, key = registry.invite("clinic-7"), new_key()
    first = join(registry, authority, secret, signing_request(key, "clinic-7")).certificate
    with pytest.raises(IdentityError, match="token cannot be used"):
        join(registry, authority, secret, request())
    admit(registry, "clinic-7", first)  # the thief's try has cost its owner nothing


def test_a_join_is_over_when_its_certificate_was_used(registry: Registry, authority: Authority) -> None:
    secret, key = registry.invite("clinic-7"), new_key()
    first = join(registry, authority, secret, signing_request(key, "clinic-7")).certificate
    admit(registry, "clinic-7", first)
    for _ in range(2):
        with pytest.raises(IdentityError, match="token cannot be used"):
            join(registry, authority, secret, signing_request(key, "clinic-7"))
        newer = renew(registry, authority, "clinic-7", digest(first), request()).certificate
        admit(registry, "clinic-7", first)
    admit(registry, "clinic-7", newer)
    with pytest.raises(IdentityError, match="token cannot be used"):
        join(registry, authority, secret, signing_request(key, "clinic-7"))


def test_a_client_that_joins_anew_may_repeat_that_too(registry: Registry, authority: Authority) -> None:
    """That it used a certificate of an earlier join does not count."""
    old = join(registry, authority, registry.invite("clinic-7"), request()).certificate
    admit(registry, "clinic-7", old)
    secret, key = registry.invite("clinic-7", again=True), new_key()
    join(registry, authority, secret, signing_request(key, "clinic-7"))
    again = join(registry, authority, secret, signing_request(key, "clinic-7")).certificate
    with pytest.raises(IdentityError, match="was taken away"):
        admit(registry, "clinic-7", old)
    admit(registry, "clinic-7", again)


@pytest.mark.parametrize("end", ["it expires", "the client is revoked", "it is replaced"])
def test_a_used_token_ends_as_an_unused_one_does(
    registry: Registry, authority: Authority, clock: Hands, end: str
) -> None:
    secret, key = registry.invite("clinic-7", hours=1), new_key()
    join(registry, authority, secret, signing_request(key, "clinic-7"))
    if end == "it expires":
        clock.move(hours=1)
    elif end == "the client is revoked":
        registry.revoke("clinic-7")
    else:
        registry.invite("clinic-7", again=True)
    with pytest.raises(IdentityError, match="token cannot be used"):
        join(registry, authority, secret, signing_request(key, "clinic-7"))


def test_a_certificate_that_is_used_while_the_join_is_repeated(
    registry: Registry, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race made certain: the repeat looks, the certificate is used, the repeat goes on."""
    secret, key = registry.invite("clinic-7"), new_key()
    first = join(registry, authority, secret, signing_request(key, "clinic-7")).certificate
    look = registry._name_of

    def slow(*arguments: Any) -> str:
        name = look(*arguments)
        admit(registry, "clinic-7", first)
        return name

    monkeypatch.setattr(registry, "_name_of", slow)
    with pytest.raises(IdentityError, match="token cannot be used"):
        join(registry, authority, secret, signing_request(key, "clinic-7"))
    admit(registry, "clinic-7", first)
