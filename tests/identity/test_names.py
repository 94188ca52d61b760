import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedlora.errors import IdentityError
from fedlora.identity.names import check_address, check_host, check_name


@pytest.mark.parametrize("name", ["a", "clinic-7", "x" * 63, "a--b-"])
def test_names_that_clients_may_have(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "7-clinic", "-a", "Clinic", "clinic 7", "clinic_7", "clinic.7", "x" * 64, "clinic\n", "ärzte", "../a", "a\0"],
)
def test_names_that_clients_may_not_have(name: str) -> None:
    with pytest.raises(IdentityError, match="cannot be a client's name"):
        check_name(name)


@given(st.text() | st.from_regex(r"[a-z0-9-]{0,70}"))
@example("²")
def test_every_text_is_a_name_or_refused(text: str) -> None:
    allowed = 1 <= len(text) <= 63 and set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and text[0].isalpha()
    if allowed:
        assert check_name(text) == text
    else:
        with pytest.raises(IdentityError):
            check_name(text)


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("Server.Example.ORG", "server.example.org"),
        ("localhost", "localhost"),
        ("my_machine", "my_machine"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
    ],
)
def test_hosts(given: str, host: str) -> None:
    assert check_host(given) == host


@pytest.mark.parametrize(
    "text",
    [
        *("", "*.example.org", "a..b", "a.", "-a", "a-", "http://a", "a:1", "[::1]", "fe80::1%eth0", "999.1.1.1"),
        *("bücher.de", "a b", "a\n", "a" * 64, ".".join(["a" * 63] * 4)),
    ],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(IdentityError, match="is no host"):
        check_host(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [("a.org:9443", ("a.org", 9443)), ("[::1]:1", ("::1", 1)), ("127.0.0.1:65535", ("127.0.0.1", 65535))],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert check_address(text) == found


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:x", "a:1:2", "::1:9443", "[127.0.0.1]:1", "a:+1", "a:1\n", "a:²"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(IdentityError, match=re.escape(repr(text))):
        check_address(text)
