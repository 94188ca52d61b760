"""Addresses of servers."""

import pytest

from fedlora.client.address import normal_address


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("FL.Example.org:8443", "fl.example.org:8443"),
        ("10.0.0.1:08443", "10.0.0.1:8443"),
        ("[2001:DB8::1]:1", "[2001:db8::1]:1"),
        ("[2001:db8:0:0::1]:00443", "[2001:db8::1]:443"),
        ("localhost:65535", "localhost:65535"),
    ],
)
def test_two_spellings_are_one_address(text: str, same: str) -> None:
    assert normal_address(text) == same == normal_address(same)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "a b:1",
        "https://host:1",
        "h:1\n",
        "999.1.1.1:1",
        "-a:1",
        "a..b:1",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        normal_address(text)
