import base64
import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedlora.errors import IdentityError
from fedlora.identity.authority import Authority
from fedlora.identity.keys import new_key, signing_request
from fedlora.identity.tokens import PREFIX, Invitation, decode, encode, new_secret, secret_digest

EXPIRES = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def invitation(authority: Authority) -> Invitation:
    return Invitation("clinic-7", "example.org:9443", authority.certificate, new_secret(), EXPIRES)


def token_of(plain: object) -> str:
    text = plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"))
    return PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def plain_of(token: str) -> dict[str, object]:
    body = token.removeprefix(PREFIX)
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def test_a_token_says_all_that_a_client_needs(invitation: Invitation) -> None:
    token = encode(invitation)
    assert token.startswith("fedlora1.")
    assert decode(token) == decode(f"\n  {token}\n") == invitation
    assert len(token) < 2000
    assert token.isprintable()
    assert not set(token) & set(" +/=\n\"'")


def test_the_time_is_in_whole_seconds_and_utc(invitation: Invitation) -> None:
    elsewhere = EXPIRES.astimezone(timezone(timedelta(hours=5))) + timedelta(microseconds=999_999)
    assert decode(encode(dataclasses.replace(invitation, expires=elsewhere))).expires == EXPIRES


def test_secrets_are_long_and_never_shown(invitation: Invitation) -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert len(base64.urlsafe_b64decode(new_secret() + "=")) == 32
    assert invitation.secret not in repr(invitation)
    assert len(secret_digest(invitation.secret)) == 64
    assert secret_digest(invitation.secret) != secret_digest(new_secret())


CHANGES: list[tuple[str, object]] = [
    ("name", "Clinic"),
    ("name", 7),
    ("name", None),
    ("server", "example.org"),
    ("server", ["example.org:1"]),
    ("authority", ""),
    ("authority", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
    ("authority", "é"),
    ("secret", "short"),
    ("secret", "x" * 44),
    ("secret", "é" * 43),
    ("secret", {}),
    ("expires", "tomorrow"),
    ("expires", "2031-5-6T7:8:9Z"),
    ("expires", "2031-05-06T07:08:09+00:00"),
    ("expires", 1),
    ("more", "than expected"),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_a_field_that_is_wrong(invitation: Invitation, field: str, value: object) -> None:
    good = plain_of(encode(invitation))
    assert token_of(good) == encode(invitation)
    with pytest.raises(IdentityError):
        decode(token_of(good | {field: value}))


@pytest.mark.parametrize("field", ["name", "server", "authority", "secret", "expires"])
def test_a_field_that_is_missing(invitation: Invitation, field: str) -> None:
    plain = plain_of(encode(invitation))
    del plain[field]
    with pytest.raises(IdentityError) as caught:
        decode(token_of(plain))
    assert invitation.secret not in str(caught.value)


def test_a_token_has_one_form(invitation: Invitation) -> None:
    token = encode(invitation)
    plain = plain_of(token)
    twisted = [
        json.dumps(plain),
        json.dumps(dict(reversed(plain.items())), separators=(",", ":")),
        json.dumps(plain, separators=(",", ":")).replace("{", '{"name":"other",', 1),
    ]
    for text in twisted:
        with pytest.raises(IdentityError, match="one right form"):
            decode(token_of(text))
    for text in (
        token + "=",
        token + "A",
        token[:-1],
        token[:-10],
        token.upper(),
        token[1:],
        token[:50] + "\n" + token[50:],
    ):
        with pytest.raises(IdentityError):
            decode(text)


def test_only_an_authoritys_certificate_alone_may_be_in_it(invitation: Invitation, authority: Authority) -> None:
    leaf = authority.sign_server(signing_request(new_key(), "server"), ["example.org"])
    key = new_key()
    for certificate in (
        leaf,
        authority.certificate + leaf,
        key + authority.certificate,
        b"# hm\n" + authority.certificate,
    ):
        with pytest.raises(IdentityError, match="of an authority alone"):
            encode(dataclasses.replace(invitation, authority=certificate))


def test_a_huge_token_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("parsed"))
    with pytest.raises(IdentityError, match="no enrolment token"):
        decode(PREFIX + "A" * 20_000)


@given(
    st.text()
    | st.text("ABCDefgh0123-_", max_size=60).map(PREFIX.__add__)
    | st.binary().map(lambda data: token_of(data.hex()))
)
@example(PREFIX + "²")
@example(token_of("[" * 5000))
@example(token_of("1" * 6000))
@example(token_of("NaN"))
@example(token_of("[]"))
@example(token_of('"\ud800"'.encode("ascii", "backslashreplace").decode()))
def test_anything_is_refused_in_words(text: str) -> None:
    with pytest.raises(IdentityError, match="ask the server's operator"):
        decode(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=50), lambda inner: st.lists(inner, max_size=3)
)


@given(
    plain=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("name", "server", "authority", "secret", "expires", "else"), JSON)
    )
)
def test_any_fields_are_refused_in_words(plain: dict[str, object]) -> None:
    with pytest.raises(IdentityError):
        decode(token_of(plain))


@given(place=st.integers(0, 10_000), put=st.characters())
def test_no_changed_letter_goes_unnoticed_or_crashes(invitation: Invitation, place: int, put: str) -> None:
    token = encode(invitation)
    place %= len(token)
    changed = token[:place] + put + token[place + 1 :]
    try:
        assert encode(decode(changed)) == changed.strip()
    except IdentityError:
        return
