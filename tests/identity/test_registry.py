import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from fedlora.errors import IdentityError
from fedlora.identity.authority import Authority
from fedlora.identity.keys import CertificateFacts, certificate_facts
from fedlora.identity.records import ClientRecord, ClientStatus
from fedlora.identity.registry import Registry
from fedlora.identity.tokens import new_secret
from fedlora.server.store import RunStore
from fedlora.server.store.tables import metadata
from tests.identity.conftest import Hands
from tests.postgres import BOTH

pytestmark = BOTH
Drawn = Callable[[str], CertificateFacts]


@pytest.fixture
def drawn(clock: Hands) -> Drawn:
    """Facts of a client's certificate that is good for a year from now; each has another hash."""
    made = iter(range(1, 10_000))

    def draw(name: str) -> CertificateFacts:
        number = next(made)
        return CertificateFacts(
            name, f"{number:x}", f"{number:064x}", clock.time, clock.time + timedelta(days=365), is_client=True
        )

    return draw


@pytest.fixture
def joined(registry: Registry, drawn: Drawn) -> Callable[[str], str]:
    """Lets a client join; gives the hash of its certificate."""

    def join(name: str, **how: Any) -> str:
        assert registry.redeem(registry.invite(name, **how)) == name
        facts = drawn(name)
        registry.record_certificate(name, facts)
        return facts.sha256

    return join


Joined = Callable[..., str]


def only(registry: Registry) -> ClientRecord:
    (record,) = registry.clients()
    return record


def test_from_invitation_to_connection(registry: Registry, drawn: Drawn, clock: Hands) -> None:
    secret = registry.invite("clinic-7", hours=2)
    record = only(registry)
    assert (record.status, record.certificate, record.enrolled_at) == (ClientStatus.INVITED, None, None)
    assert record.invitation_expires == clock.time + timedelta(hours=2)
    assert registry.redeem(secret) == "clinic-7"
    facts = drawn("clinic-7")
    clock.move(minutes=1)
    registry.record_certificate("clinic-7", facts)
    registry.admit("clinic-7", facts.sha256)
    record = only(registry)
    assert (record.status, record.certificate) == (ClientStatus.ACTIVE, facts.sha256)
    assert (record.certificate_expires, record.invitation_expires) == (facts.not_after, None)
    assert record.enrolled_at == clock.time


def test_the_secret_is_not_in_the_database(registry: Registry, tmp_path: Path) -> None:
    secret = registry.invite("clinic-7")
    with registry._database.reads() as connection:
        rows = [connection.execute(sa.select(table)).all() for table in metadata.sorted_tables]
    kept = [path.read_bytes() for path in tmp_path.glob("fedlora.db*")] + [repr(rows).encode()]
    assert any(b"clinic-7" in data for data in kept)
    assert not any(secret.encode() in data for data in kept)


def test_every_bad_token_gets_one_and_the_same_answer(registry: Registry, joined: Joined, clock: Hands) -> None:
    used, expired, withdrawn, other = (registry.invite(name) for name in ("used", "expired", "withdrawn", "other"))
    registry.redeem(used)
    registry.invite("withdrawn")
    registry.revoke("other")
    said = set()
    for secret in (used, withdrawn, other, new_secret(), "", "é", "\ud800", "x" * 100_000):
        with pytest.raises(IdentityError) as caught:
            registry.redeem(secret)
        said.add(str(caught.value))
    clock.move(hours=72)
    with pytest.raises(IdentityError) as caught:
        registry.redeem(expired)
    said.add(str(caught.value))
    assert len(said) == 1


def test_a_token_is_good_until_its_last_moment(registry: Registry, clock: Hands) -> None:
    secret = registry.invite("clinic-7", hours=1)
    clock.move(minutes=59, seconds=59)
    assert registry.redeem(secret) == "clinic-7"


def test_a_wrong_guess_of_the_name_does_not_use_the_token_up(registry: Registry) -> None:
    secret = registry.invite("clinic-7")
    with pytest.raises(IdentityError, match="this token cannot be used"):
        registry.redeem(secret, "clinic-8")
    assert registry.redeem(secret, "clinic-7") == "clinic-7"


def test_of_many_that_redeem_one_token_one_wins(registry: Registry) -> None:
    for turn in range(5):
        secret = registry.invite(f"clinic-{turn}")
        start = threading.Barrier(8)

        def redeem(_: int, secret: str = secret, start: threading.Barrier = start) -> str:
            start.wait()
            try:
                return registry.redeem(secret)
            except IdentityError:
                return "refused"

        with ThreadPoolExecutor(8) as pool:
            found = sorted(pool.map(redeem, range(8)))
        assert found == [f"clinic-{turn}"] + ["refused"] * 7


def test_a_token_that_another_uses_between_look_and_use(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race made certain: the second looks, the first redeems, the second goes on."""
    secret, look = registry.invite("clinic-7"), registry._name_of

    def slow(*arguments: Any) -> str:
        name = look(*arguments)
        monkeypatch.undo()
        assert registry.redeem(secret) == name
        return name

    monkeypatch.setattr(registry, "_name_of", slow)
    with pytest.raises(IdentityError, match="this token cannot be used"):
        registry.redeem(secret)


def test_guesses_do_not_wait_for_writers(registry: Registry) -> None:
    """A stranger's guess only reads: it neither waits for the lock for writing nor takes it."""
    with registry._database.writes(), pytest.raises(IdentityError, match="this token cannot be used"):
        registry.redeem(new_secret())


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 9000])
def test_times_that_a_token_cannot_have(registry: Registry, hours: float) -> None:
    with pytest.raises(IdentityError, match="hours"):
        registry.invite("clinic-7", hours=hours)
    assert registry.clients() == ()


def test_a_new_token_takes_the_place_of_an_old_one(registry: Registry) -> None:
    old, new = registry.invite("clinic-7"), registry.invite("clinic-7")
    with pytest.raises(IdentityError):
        registry.redeem(old)
    assert registry.redeem(new) == "clinic-7"


def test_a_client_with_a_certificate_is_invited_again_only_on_purpose(
    registry: Registry, joined: Joined, drawn: Drawn
) -> None:
    old = joined("clinic-7")
    with pytest.raises(IdentityError, match="--again"):
        registry.invite("clinic-7")
    secret = registry.invite("clinic-7", again=True)
    registry.admit("clinic-7", old)
    assert only(registry).status is ClientStatus.ACTIVE
    registry.redeem(secret)
    with pytest.raises(IdentityError, match="was taken away"):
        registry.admit("clinic-7", old)
    new = drawn("clinic-7")
    registry.record_certificate("clinic-7", new)
    registry.admit("clinic-7", new.sha256)
    assert only(registry).certificate == new.sha256


def test_a_client_whose_certificate_has_expired_is_invited_like_a_new_one(
    registry: Registry, joined: Joined, clock: Hands
) -> None:
    joined("clinic-7")
    clock.move(days=365)
    assert registry.redeem(registry.invite("clinic-7")) == "clinic-7"


def test_who_is_not_admitted_and_why(registry: Registry, joined: Joined, clock: Hands) -> None:
    of_seven, of_eight = joined("clinic-7"), joined("clinic-8")
    registry.invite("clinic-9")
    for name, sha256, why in [
        ("stranger", of_seven, "no client 'stranger' is registered"),
        ("clinic-7", "0" * 64, "not on record"),
        ("clinic-7", of_eight, "not on record"),
        ("clinic-9", of_seven, "not on record"),
    ]:
        with pytest.raises(IdentityError, match=why):
            registry.admit(name, sha256)
    clock.move(days=364)
    registry.admit("clinic-7", of_seven)
    clock.move(days=1)
    with pytest.raises(IdentityError, match="expired on"):
        registry.admit("clinic-7", of_seven)


def test_renewal_keeps_the_old_certificate_until_the_new_one_is_used(
    registry: Registry, joined: Joined, drawn: Drawn
) -> None:
    old, new = joined("clinic-7"), drawn("clinic-7")
    registry.admit("clinic-7", old)
    registry.record_certificate("clinic-7", new, renews=old)
    registry.admit("clinic-7", old)
    assert only(registry).certificate == old
    registry.admit("clinic-7", new.sha256)
    assert only(registry).certificate == new.sha256
    with pytest.raises(IdentityError, match="was replaced by a newer one"):
        registry.admit("clinic-7", old)


def test_a_client_that_dies_while_it_renews_is_never_locked_out(
    registry: Registry, joined: Joined, drawn: Drawn
) -> None:
    """Whichever of its certificates it still has, that one opens the door; and those before it no more."""
    first = joined("clinic-7")
    given = [drawn("clinic-7") for _ in range(4)]
    for facts in given:
        registry.record_certificate("clinic-7", facts, renews=first)
    second = given[1].sha256
    registry.admit("clinic-7", second)
    for old in (first, given[0].sha256):
        with pytest.raises(IdentityError, match="was replaced"):
            registry.admit("clinic-7", old)
    registry.admit("clinic-7", second)
    registry.admit("clinic-7", given[3].sha256)
    with pytest.raises(IdentityError, match="was replaced"):
        registry.admit("clinic-7", given[2].sha256)


def test_the_certificates_of_a_client_are_bounded(
    registry: Registry, joined: Joined, drawn: Drawn, clock: Hands
) -> None:
    used = joined("clinic-7")
    registry.admit("clinic-7", used)
    given = [drawn("clinic-7") for _ in range(40)]
    for facts in given:
        registry.record_certificate("clinic-7", facts, renews=used)
    registry.admit("clinic-7", used)
    with pytest.raises(IdentityError, match="was replaced"):
        registry.admit("clinic-7", given[23].sha256)
    registry.admit("clinic-7", given[24].sha256)
    registry.admit("clinic-7", given[39].sha256)
    clock.move(days=200)
    newer = drawn("clinic-7")
    registry.record_certificate("clinic-7", newer, renews=given[39].sha256)
    registry.admit("clinic-7", newer.sha256)
    clock.move(days=200)
    registry.record_certificate("clinic-7", drawn("clinic-7"), renews=newer.sha256)
    with registry._database.reads() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM certificates")).scalar() == 2


def test_a_renewal_needs_a_certificate_that_holds(registry: Registry, joined: Joined, drawn: Drawn) -> None:
    """Also when it was asked for over a connection that began while the certificate did hold."""
    old = joined("clinic-7")
    registry.redeem(registry.invite("clinic-7", again=True))
    with pytest.raises(IdentityError, match="was taken away"):
        registry.record_certificate("clinic-7", drawn("clinic-7"), renews=old)
    with pytest.raises(IdentityError, match="not on record"):
        registry.record_certificate("clinic-7", drawn("clinic-7"), renews=joined("clinic-8"))


def test_only_who_has_joined_gets_a_first_certificate(registry: Registry, joined: Joined, drawn: Drawn) -> None:
    joined("clinic-7")
    with pytest.raises(IdentityError, match="it is active"):
        registry.record_certificate("clinic-7", drawn("clinic-7"))
    with pytest.raises(IdentityError, match="it is unknown"):
        registry.record_certificate("stranger", drawn("stranger"))
    registry.revoke("clinic-7")
    with pytest.raises(IdentityError, match="it is revoked"):
        registry.record_certificate("clinic-7", drawn("clinic-7"))


def test_a_certificate_must_be_the_clients(registry: Registry, drawn: Drawn, authority: Authority) -> None:
    registry.redeem(registry.invite("clinic-7"))
    for facts in (drawn("clinic-8"), certificate_facts(authority.certificate)):
        with pytest.raises(IdentityError, match="is not one for the client"):
            registry.record_certificate("clinic-7", facts)


def test_a_revoked_client_is_out_at_once(registry: Registry, joined: Joined, drawn: Drawn) -> None:
    sha256, staying = joined("clinic-7"), joined("clinic-8")
    registry.record_certificate("clinic-7", drawn("clinic-7"), renews=sha256)
    token = registry.invite("clinic-7", again=True)
    registry.revoke("clinic-7", "left the study")
    with pytest.raises(IdentityError, match=r"was revoked \(left the study\)"):
        registry.admit("clinic-7", sha256)
    with pytest.raises(IdentityError, match="this token cannot be used"):
        registry.redeem(token)
    with pytest.raises(IdentityError, match="was revoked"):
        registry.record_certificate("clinic-7", drawn("clinic-7"), renews=sha256)
    registry.admit("clinic-8", staying)
    registry.revoke("clinic-7", "another reason")
    record = registry.clients()[0]
    assert (record.status, record.reason, record.certificate) == (ClientStatus.REVOKED, "left the study", None)


def test_a_revoked_client_can_be_let_in_again_with_a_new_certificate(
    registry: Registry, joined: Joined, drawn: Drawn
) -> None:
    old = joined("clinic-7")
    registry.revoke("clinic-7", "by mistake")
    new = joined("clinic-7")
    registry.admit("clinic-7", new)
    assert (only(registry).status, only(registry).reason) == (ClientStatus.ACTIVE, "")
    with pytest.raises(IdentityError, match="was taken away"):
        registry.admit("clinic-7", old)


def test_one_who_is_revoked_while_joining_gets_nothing(registry: Registry, drawn: Drawn) -> None:
    registry.redeem(registry.invite("clinic-7"))
    registry.revoke("clinic-7")
    with pytest.raises(IdentityError, match="it is revoked"):
        registry.record_certificate("clinic-7", drawn("clinic-7"))


def test_nobody_is_revoked_by_a_typing_mistake(registry: Registry) -> None:
    with pytest.raises(IdentityError, match="no client 'clinic-8' to revoke"):
        registry.revoke("clinic-8")


def test_being_seen_is_written_once_a_minute(registry: Registry, joined: Joined, clock: Hands) -> None:
    joined("clinic-7")
    joined("clinic-8")
    first = clock.time
    registry.seen("clinic-7", "0.1.0")
    clock.move(seconds=59)
    with registry._database.writes():  # or it would wait for the lock
        registry.seen("clinic-7", "0.2.0")
    registry.seen("clinic-8", "0.3.0")
    seven, eight = registry.clients()
    assert (seven.last_seen, seven.version) == (first, "0.1.0")
    assert (eight.last_seen, eight.version) == (clock.time, "0.3.0")
    clock.move(seconds=1)
    registry.seen("clinic-7", "0.2.0" + "x" * 10_000)
    seven = registry.clients()[0]
    assert (seven.last_seen, len(seven.version)) == (clock.time, 500)


def test_a_clock_that_is_set_back_does_not_stop_the_notes(registry: Registry, joined: Joined, clock: Hands) -> None:
    joined("clinic-7")
    registry.seen("clinic-7", "0.1.0")
    clock.move(days=-300)
    registry.seen("clinic-7", "0.1.0")
    assert only(registry).last_seen == clock.time


def test_admission_only_reads_once_a_certificate_was_used(registry: Registry, joined: Joined) -> None:
    sha256 = joined("clinic-7")
    registry.admit("clinic-7", sha256)
    with registry._database.writes():  # or it would wait for the lock
        registry.admit("clinic-7", sha256)


def test_clients_stay_when_the_server_starts_again(
    registry: Registry, joined: Joined, tmp_path: Path, store_url: str | None
) -> None:
    sha256 = joined("clinic-7")
    registry._database.close()
    with RunStore.open(tmp_path, url=store_url) as store:
        Registry(store.database).admit("clinic-7", sha256)


def test_names_that_no_database_takes(registry: Registry) -> None:
    """A stranger may put anything into a certificate: it is unknown, and no error of the database's."""
    for name in ("nul\0", "half \ud800", "x" * 10_000):
        with pytest.raises(IdentityError, match="no client"):
            registry.admit(name, "0" * 64)


def test_clients_are_listed_as_their_names_are_spelt(registry: Registry) -> None:
    """Not as the database's language sorts them, where hyphens do not count."""
    names = ["a-z", "ab", "a-b", "aa"]
    for name in names:
        registry.invite(name)
    assert [record.name for record in registry.clients()] == sorted(names)


def test_of_many_that_invite_one_client_the_last_counts(registry: Registry) -> None:
    start = threading.Barrier(8)

    def invite(_: int) -> str:
        start.wait()
        return registry.invite("clinic-7")

    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(invite, range(8)))
    used = []
    for secret in secrets:
        with contextlib.suppress(IdentityError):
            used.append(registry.redeem(secret))
    assert used == ["clinic-7"]


def test_what_clients_and_operators_say_is_kept_as_one_short_line(registry: Registry, joined: Joined) -> None:
    evil = "1.0\x1b[2J\n\u202e" * 200
    joined("clinic-7")
    registry.seen("clinic-7", evil)
    registry.revoke("clinic-7", evil)
    record = only(registry)
    for text in (record.version, record.reason):
        assert text.isprintable()
        assert 0 < len(text) <= 500
