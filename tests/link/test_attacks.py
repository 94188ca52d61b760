"""What a client with a valid certificate can say, and what it gets: a reason, and nothing counted. Others go on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fedlora.errors import StoreError
from fedlora.link import limits
from fedlora.link.host import LinkHost
from fedlora.link.inbox import Inbox
from fedlora.link.v1.link_pb2 import (
    Accept,
    Chunk,
    DataSet,
    Decline,
    Failed,
    Fetch,
    FromClient,
    Heartbeat,
    Offer,
    State,
)
from fedlora.server.admission import LOST_CODE
from fedlora.wire import declined_reason
from tests.link.raw import ABOUT, Raw, announced, answer, chunks, hello, upload
from tests.link.siege import SITES, Siege, besieged
from tests.link.world import World, eventually, make_world, message, values


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def siege(world: World) -> Iterator[Siege]:
    with besieged(world) as found:
        yield found


def test_the_raw_client_can_do_what_an_honest_one_does(siege: Siege) -> None:
    """Else what follows would prove nothing."""
    with siege.offender() as raw:
        collect = siege.ask(0, 1)
        offer = raw.hear("offer")
        raw.say(FromClient(accept=Accept(work=offer.work)))
        assert len(raw.hear("chunk").data) == offer.size
        upload(raw, offer.work, answer(offer, 1))
        assert raw.hear("acknowledged").counted
        assert values(collect()) == {2: 1.0, 3: 7.0}
    siege.check_honest()


# What must not be said. The offender hears why, and the connection ends.

OUTRAGEOUS: dict[str, tuple[Callable[[Offer], list[FromClient | bytes]], str]] = {
    "a second hello": (lambda offer: [hello()], "kind 'hello' is not expected"),
    "nothing": (lambda offer: [FromClient()], "kind None is not expected"),
    "an unknown kind": (lambda offer: [b"\xfa\x01\x02hi"], "kind None is not expected"),
    "garbage": (lambda offer: [b"\xff\xff\xff\xff"], "Error parsing"),
    "a chunk out of the blue": (lambda offer: list(chunks(offer.work, b"abc")), "was not announced"),
    "a chunk at the wrong place": (
        lambda offer: [announced(offer.work, b"0" * 10), FromClient(chunk=Chunk(work=offer.work, offset=5, data=b"0"))],
        "begins at 5, but 0 bytes are there",
    ),
    "a chunk at the end of the world": (
        lambda offer: [
            announced(offer.work, b"0" * 10),
            FromClient(chunk=Chunk(work=offer.work, offset=2**64 - 1, data=b"0")),
        ],
        "begins at 18446744073709551615",
    ),
    "more than announced": (
        lambda offer: [announced(offer.work, b"0" * 10), *chunks(offer.work, b"0" * 11)],
        "does not fit into the 10 announced",
    ),
    "an empty chunk": (
        lambda offer: [announced(offer.work, b"0" * 10), FromClient(chunk=Chunk(work=offer.work))],
        "a chunk of 0 bytes does not fit",
    ),
    "nothing announced": (lambda offer: [announced(offer.work, b"")], "an answer of 0 bytes was announced"),
    "2^63 bytes announced": (lambda offer: [announced(offer.work, b"", size=2**63)], f"answer of {2**63} bytes"),
    "2^64-1 bytes announced": (lambda offer: [announced(offer.work, b"", size=2**64 - 1)], "at most"),
    "more announced than the manifest needs": (
        lambda offer: [announced(offer.work, b"", size=limits.ANSWER_SLACK + 4 * 32 + limits.TENSOR_SLACK + 1)],
        "at most 1049728 are taken",
    ),
    "no hash": (lambda offer: [announced(offer.work, b"abc", sha256=b"")], "with a SHA-256"),
    "a hash of 31 bytes": (lambda offer: [announced(offer.work, b"abc", sha256=b"1" * 31)], "with a SHA-256"),
    "another hash": (
        lambda offer: [announced(offer.work, b"abc", sha256=b"1" * 32), *chunks(offer.work, b"abc")],
        "do not have the SHA-256 that was announced",
    ),
    "arrays from beyond their end": (
        lambda offer: [FromClient(accept=Accept(work=offer.work, offset=2**63))],
        f"none begin at {2**63}",
    ),
    "arrays again from beyond their end": (
        lambda offer: [FromClient(fetch=Fetch(work=offer.work, offset=offer.size + 1))],
        "none begin at",
    ),
    "no end of sizes": (lambda offer: [b"\0" * (limits.CLIENT_FRAME + 1)], "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize("what", OUTRAGEOUS)
def test_what_must_not_be_said_ends_the_connection_with_a_reason(siege: Siege, what: str) -> None:
    frames, reason = OUTRAGEOUS[what]
    with siege.round() as (raw, offer):
        raw.say(*frames(offer))
        assert reason in raw.ended()
        eventually(lambda: "site-1" not in siege.host.hub.connected())


NO_IDS = [
    "",
    "../../../etc/passwd",
    "A" * 64,
    "a" * 63,
    "a" * 65,
    "a" * 63 + "\n",
    "a" * 64 + "\0",
    "é" * 64,
    "x" * 500_000,
]


@pytest.mark.parametrize("kind", ABOUT)
def test_what_is_no_id_of_a_work_names_no_file(
    siege: Siege, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for work in NO_IDS:
        with siege.offender() as raw:
            raw.say(ABOUT[kind](work))
            reason = raw.ended()
            assert "is no id of a work" in reason
            assert len(reason) < 200
        siege.forgive()
    assert not list(tmp_path.rglob("*.part"))
    siege.check_honest()


# How a connection begins.

BAD_BEGINNINGS: dict[str, tuple[FromClient | bytes, str]] = {
    "a heartbeat": (FromClient(heartbeat=Heartbeat(number=1)), "must begin with a hello"),
    "nothing": (FromClient(), "must begin with a hello"),
    "garbage": (b"\xff\xff\xff", "cannot be read"),
    "no instance": (hello(instance=""), "must begin with a hello"),
    "too many data sets": (hello(data=[DataSet(name=str(i)) for i in range(101)]), "must begin with a hello"),
    "too much policy": (hello(policy=["x"] * (limits.POLICY_LINES + 1)), "must begin with a hello"),
    "an older protocol": (hello(protocol=0, version="0.0.1\x1b[2J"), "(fedlora 0.0.1 [2J) 0: install the same version"),
    "a later protocol": (hello(protocol=2**32 - 1), "install the same version on both sides"),
}


@pytest.mark.parametrize("what", BAD_BEGINNINGS)
def test_a_connection_that_does_not_begin_with_a_hello_of_this_protocol_is_turned_away(siege: Siege, what: str) -> None:
    first, reason = BAD_BEGINNINGS[what]
    with siege.raw() as raw:
        raw.say(first)
        goodbye = raw.hear("goodbye")
        assert reason in goodbye.reason
        assert not goodbye.retry
    assert "site-1" not in siege.host.hub.presences
    siege.check_honest()


def test_who_says_nothing_is_turned_away_and_cannot_do_it_many_times_at_once(
    siege: Siege, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HELLO", 1.5)
    silent = [siege.raw() for _ in range(limits.GREETINGS)]
    eventually(lambda: siege.service._greeting["site-1"] == limits.GREETINGS)
    with siege.raw() as one_more:
        assert "have not said hello yet" in one_more.hear("goodbye").reason
    siege.check_honest()
    for raw in silent:
        assert "no hello came" in raw.hear("goodbye").reason
        raw.hang_up()
    eventually(lambda: not siege.service._greeting)
    siege.offender().hang_up()


def test_what_a_client_says_of_itself_is_cut_and_cannot_steer_a_terminal(siege: Siege) -> None:
    evil = "\x1b[2J\r\n\u202e" + "x" * 100_000
    with siege.raw() as raw:
        raw.say(hello(version=evil, state=State(reason=evil, work=evil, paused=True), data=[DataSet(name=evil)]))
        eventually(lambda: "site-1" in siege.host.hub.connected())
        there = siege.host.hub.presences["site-1"]
        for text in (there.version, there.state.reason, there.state.work, *there.data):
            assert text.isprintable()
            assert 900 < len(text) <= limits.TEXT
        raw.say(FromClient(heartbeat=Heartbeat(number=1, state=State(reason=evil + evil))))
        raw.hear("heartbeat")
        assert there.state.reason.isprintable()
        assert len(there.state.reason) == limits.TEXT


def test_what_a_client_says_of_its_device_and_policy_is_cut_and_cannot_steer_a_terminal(siege: Siege) -> None:
    evil = "\x1b[2J\r\n\u202e<script>" + "x" * 20_000
    with siege.raw() as raw:
        raw.say(hello(device=evil, policy=[evil] * limits.POLICY_LINES))
        eventually(lambda: "site-1" in siege.host.hub.connected())
        there = siege.host.hub.presences["site-1"]
        assert len(there.device) == limits.DEVICE
        assert len(there.policy) == limits.POLICY_LINES
        assert all(len(line) == limits.POLICY_LINE for line in there.policy)
        assert all(text.isprintable() for text in (there.device, *there.policy))
    siege.check_honest()


def test_who_comes_back_and_tells_less_is_known_for_no_more(siege: Siege) -> None:
    with siege.raw() as raw:
        raw.say(hello(device="2 CPU cores", policy=["tasks: any"], data=[DataSet(name="notes")]))
        eventually(lambda: "site-1" in siege.host.hub.connected())
        assert siege.host.hub.presences["site-1"].policy == ["tasks: any"]
    with siege.raw() as raw:
        raw.connected()
        eventually(lambda: not siege.host.hub.presences["site-1"].device)
        there = siege.host.hub.presences["site-1"]
        assert (list(there.data), list(there.policy)) == ([], [])
    siege.check_honest()


def test_a_reason_of_a_megabyte_is_too_large_a_frame_and_a_long_one_is_cut(siege: Siege) -> None:
    with siege.round() as (raw, offer):
        raw.say(FromClient(decline=Decline(work=offer.work, reason="n" * 1_000_000)))
        assert "RESOURCE_EXHAUSTED" in raw.ended()
    for say in (
        lambda work, reason: FromClient(decline=Decline(work=work, reason=reason)),
        lambda work, reason: FromClient(failed=Failed(work=work, reason=reason)),
    ):
        with siege.offender() as raw:
            collect = siege.ask(0, 1)
            raw.say(say(raw.hear("offer").work, "\x1b[31mno\n" + "n" * 400_000))
            honest, refused = collect()
        told = refused.error.reason if refused.has_error() else declined_reason(refused.content)
        assert told is not None
        assert told.isprintable()
        assert len(told) == limits.TEXT
        assert values([honest]) == {2: siege.rounds}
    siege.check_honest()


# What is another's, or over.


def test_the_work_of_another_site_cannot_be_answered_ended_or_read(siege: Siege) -> None:
    let_go = Event()
    siege.honest.before_work = lambda task: let_go.wait(10.0)  # type: ignore[assignment,return-value]
    with siege.round() as (raw, offer):
        theirs = siege.open_offer("site-0").work
        data = answer(offer, 0)
        raw.say(announced(theirs, data))
        said = raw.hear("acknowledged")
        assert (said.work, said.counted) == (theirs, False)
        raw.say(*chunks(theirs, data), ABOUT["decline"](theirs), ABOUT["failed"](theirs))
        raw.say(ABOUT["accept"](theirs), ABOUT["fetch"](theirs), ABOUT["is_open"](theirs))
        assert not raw.hear("openness").open  # and no chunk came before it
        raw.say(announced(offer.work, data), *chunks(theirs, data))
        assert raw.hear("resume").offset == 0
        raw.say(ABOUT["is_open"](offer.work))
        assert raw.hear("openness").open
        assert not siege.host.hub.works[theirs].ended.done()
        assert not [name for name in siege.inbox() if name.startswith(theirs)]
        let_go.set()


def test_a_chunk_goes_to_the_answer_that_was_announced_and_to_no_other(siege: Siege) -> None:
    """Also among works of the same client."""
    with siege.round() as (raw, offer):
        other = siege.world.grid(siege.host, SITES, run="run-2", absence=0.2)
        collect = other.ask([message(1, 1, run="run-2")])
        second = raw.hear("offer")
        data = answer(offer, 1)
        raw.say(announced(offer.work, data), *chunks(second.work, data))
        assert "was not announced" in raw.ended()
        raw.hang_up()
        assert next(iter(collect())).has_error()


def test_works_that_nobody_knows_are_not_open(siege: Siege) -> None:
    with siege.round() as (raw, _):
        for unknown in ("0" * 64, "f" * 64):
            raw.say(ABOUT["is_open"](unknown))
            said = raw.hear("openness")
            assert (said.work, said.open) == (unknown, False)
        raw.say(*(ABOUT[kind]("0" * 64) for kind in ("accept", "fetch", "decline", "failed", "chunk", "upload")))
        assert not raw.hear("acknowledged").counted


def test_an_answer_counts_once_and_the_first_one_counts(siege: Siege) -> None:
    with siege.offender() as raw:
        collect = siege.ask(0, 1)
        offer = raw.hear("offer")
        first, second = answer(offer, 1, 7.0), answer(offer, 1, 8.0)
        upload(raw, offer.work, first)
        assert raw.hear("acknowledged").counted
        raw.say(announced(offer.work, first))
        assert raw.hear("acknowledged").counted
        raw.say(announced(offer.work, second))
        assert raw.hear("acknowledged").counted
        raw.say(*chunks(offer.work, second), ABOUT["decline"](offer.work), ABOUT["is_open"](offer.work))
        assert not raw.hear("openness").open
        assert values(collect()) == {2: 1.0, 3: 7.0}
        siege.grid.committed(1)
        raw.say(announced(offer.work, second), *chunks(offer.work, second))
        assert raw.hear("acknowledged").counted  # one of its answers was
        assert siege.inbox() == []
    siege.check_honest()


def test_whose_acknowledgement_was_lost_is_told_later_that_it_was_counted(siege: Siege) -> None:
    with siege.offender() as raw:
        collect = siege.ask(0, 1)
        offer = raw.hear("offer")
        upload(raw, offer.work, answer(offer, 1))
        assert values(collect()) == {2: 1.0, 3: 7.0}
        siege.grid.committed(1)
    with siege.offender() as raw:
        raw.say(ABOUT["is_open"](offer.work))
        assert raw.hear("acknowledged").counted
        assert not raw.hear("openness").open
        raw.say(announced(offer.work, answer(offer, 1)))
        assert raw.hear("acknowledged").counted
    with Raw(siege.world, "site-2") as stranger:
        stranger.connected().say(announced(offer.work, answer(offer, 1)), ABOUT["is_open"](offer.work))
        assert not stranger.hear("acknowledged").counted
        assert not stranger.hear("openness").open
    siege.check_honest()


def test_a_server_remembers_so_many_counted_answers_and_no_more(siege: Siege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COUNTED", 2)
    with siege.offender() as raw:
        works = []
        for _ in range(2):
            collect = siege.ask(0, 1)
            offer = raw.hear("offer")
            upload(raw, offer.work, answer(offer, 1))
            collect()
            works.append(offer.work)
        assert [siege.host.hub.counted("site-1", work) for work in works] == [False, True]


@pytest.mark.parametrize("committed", [False, True])
def test_an_answer_whose_round_is_closed_while_the_disk_writes_is_not_kept(
    siege: Siege, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """It is told not to be counted; so it must not be there when the same work is asked for again."""
    go_on, keep = Event(), Inbox.keep

    def slowly(self: Inbox, path: Path, work: str) -> Path:
        if work == offer.work:
            assert go_on.wait(10.0)
        return keep(self, path, work)

    monkeypatch.setattr(Inbox, "keep", slowly)
    with siege.offender() as raw:
        collect = siege.ask(1, timeout=0.5)
        offer = raw.hear("offer")
        upload(raw, offer.work, answer(offer, 1))
        (lost,) = collect()
        assert "deadline" in lost.error.reason
        if committed:
            siege.grid.committed(1)
        go_on.set()
        assert not raw.hear("acknowledged").counted
        assert siege.inbox() == []
    siege.check_honest()


# Floods.


def test_more_frames_than_a_minute_may_have_end_the_connection(siege: Siege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMES_A_MINUTE", 200)
    floods: list[Callable[[Offer], list[FromClient | bytes]]] = [
        lambda offer: [FromClient(heartbeat=Heartbeat(number=1))] * 201,
        lambda offer: [ABOUT["accept"](offer.work)] * 201,
        lambda offer: [ABOUT["is_open"]("0" * 64)] * 201,
        lambda offer: [announced(offer.work, b"abc")] * 201,
        lambda offer: [announced(offer.work, b"0" * 1000), *chunks(offer.work, b"0" * 1000, size=1)],
        lambda offer: [announced(offer.work, b"abc"), *[ABOUT["chunk"]("0" * 64)] * 201],
    ]
    for frames in floods:
        with siege.round() as (raw, offer):
            raw.say(*frames(offer))
            assert "more than 200 frames in a minute" in raw.ended()
        siege.forgive()


def test_a_large_answer_needs_more_frames_than_a_minute_may_have(siege: Siege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMES_A_MINUTE", 8)
    with siege.offender() as raw:
        collect = siege.ask(1, numbers=1_500_000)
        offer = raw.hear("offer")
        upload(raw, offer.work, answer(offer, 1, numbers=1_500_000))
        assert raw.hear("acknowledged").counted
        assert values(collect()) == {3: 7.0}


def test_a_frame_that_grows_when_it_is_unpacked_is_refused(siege: Siege) -> None:
    import grpc

    with siege.raw(compression=grpc.Compression.Gzip) as raw:
        raw.say(hello(version="x" * 100_000))
        assert "UNIMPLEMENTED" in raw.ended()
    siege.check_honest()


def test_the_same_announcement_again_does_not_hash_the_same_bytes_again(
    siege: Siege, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    receive = Inbox.receive
    monkeypatch.setattr(Inbox, "receive", lambda self, said: (begun.append(said.work), receive(self, said))[1])
    with siege.round() as (raw, offer):
        data = b"0" * 1000
        raw.say(announced(offer.work, data), FromClient(chunk=Chunk(work=offer.work, data=data[:400])))
        raw.hear("resume")
        for _ in range(20):
            raw.say(announced(offer.work, data))
            assert raw.hear("resume").offset == 400
        assert begun.count(offer.work) == 1


def test_who_breaks_the_protocol_again_and_again_is_turned_away_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REFUSAL_WINDOW", 4.0)
    with besieged(world) as siege:
        for wrong in (b"\xff\xff", FromClient(), hello(), announced("x", b""), ABOUT["chunk"]("y")):
            with siege.offender() as raw:
                raw.say(wrong)
                raw.ended()
        with siege.raw() as raw:
            raw.say(hello())
            goodbye = raw.hear("goodbye")
            assert "broke the protocol 5 times" in goodbye.reason
            assert goodbye.retry  # later
        siege.check_honest()
        time.sleep(4.0)
        siege.offender().hang_up()


# Clients that do not read.


def test_who_does_not_read_is_not_answered_for_ever(
    siege: Siege, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "FRAME_OVERHEAD", 8192)
    monkeypatch.setattr(limits, "OUTGOING", 10 * (limits.CHUNK + 2 * limits.FRAME_OVERHEAD))
    with siege.offender(reads=False) as raw:
        collect = siege.ask(0, 1, numbers=3_000_000)
        session: Any = siege.host.hub.presences["site-1"].connection
        raw.say(ABOUT["accept"](siege.open_offer("site-1").work))
        eventually(lambda: not session._room.is_set())
        largest = 0
        for _ in range(80):
            raw.say(*[FromClient(heartbeat=Heartbeat(number=2**63))] * 50)
            time.sleep(0.01)
            largest = max(largest, session._outgoing.qsize())
        eventually(lambda: "site-1" not in siege.host.hub.connected())
        assert 8 < largest < 1000  # of 4,000
        assert "does not read what it is sent" in caplog.text
        assert values(collect()[:1]) == {2: siege.rounds}
    siege.check_honest()


def test_who_reads_nothing_for_too_long_is_gone(
    siege: Siege, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT", 0.4)
    with siege.offender(reads=False) as raw:
        collect = siege.ask(1, numbers=3_000_000)
        raw.say(ABOUT["accept"](siege.open_offer("site-1").work))
        end = time.monotonic() + 10.0
        while "site-1" in siege.host.hub.connected():
            raw.say(FromClient(heartbeat=Heartbeat()))
            time.sleep(0.05)
            assert time.monotonic() < end
        assert "has read nothing for too long" in caplog.text
        assert collect()[0].has_error()
    monkeypatch.undo()
    siege.check_honest()


def test_who_says_nothing_for_too_long_is_told_so(siege: Siege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT", 0.2)
    with siege.offender() as raw:
        assert "nothing came from the client for 1 s" in raw.ended()
    monkeypatch.undo()
    siege.check_honest()


@pytest.mark.parametrize("silent", [False, True])
def test_who_was_dismissed_cannot_go_on_by_not_reading_the_goodbye(siege: Siege, silent: bool) -> None:
    """Revoked while it does not read: the last word cannot be written, and nothing that it says counts."""
    with siege.offender(reads=False) as raw:
        collect = siege.ask(0, 1, numbers=3_000_000)
        work = siege.open_offer("site-1").work
        raw.say(ABOUT["accept"](work))
        session: Any = siege.host.hub.presences["site-1"].connection
        eventually(lambda: not session._room.is_set())
        siege.host.call(dismissed(siege.host))
        if not silent:
            raw.say(announced(work, b"abc"), *chunks(work, b"abc"))
        eventually(lambda: "site-1" not in siege.host.hub.connected(), 2 * limits.LAST_WORD)
        honest, lost = collect()
        assert (values([honest]), lost.error.code) == ({2: 1.0}, LOST_CODE)
        assert not [name for name in siege.inbox() if name.startswith(work)]
    siege.check_honest()


async def dismissed(host: LinkHost) -> None:
    host.hub.dismiss("site-1", "revoked")


# Disconnecting in the middle of everything.

MIDDLES: dict[str, Callable[[Raw, Offer], object]] = {
    "the offer": lambda raw, offer: None,
    "the arrays": lambda raw, offer: (raw.say(ABOUT["accept"](offer.work)), raw.hear("chunk")),
    "the question": lambda raw, offer: raw.say(ABOUT["is_open"](offer.work)),
    "the announcement": lambda raw, offer: raw.say(announced(offer.work, b"0" * 1000)),
    "the answer": lambda raw, offer: (
        raw.say(announced(offer.work, b"0" * 1000), FromClient(chunk=Chunk(work=offer.work, data=b"0" * 999))),
        raw.hear("resume"),
    ),
    "its own farewell": lambda raw, offer: raw.close(),
}


@pytest.mark.parametrize("middle", MIDDLES)
def test_who_hangs_up_is_gone_and_nobody_else_notices(siege: Siege, middle: str) -> None:
    with siege.round() as (raw, offer):
        MIDDLES[middle](raw, offer)
        raw.hang_up()
        eventually(lambda: "site-1" not in siege.host.hub.connected())


def test_an_answer_goes_on_where_its_connection_broke(siege: Siege) -> None:
    with siege.offender() as raw:
        collect = siege.ask(0, 1)
        offer = raw.hear("offer")
        data = answer(offer, 1)
        raw.say(announced(offer.work, data), *chunks(offer.work, data[:100]))
        eventually(lambda: any((siege.world.folder / "run-1" / "incoming" / n).stat().st_size for n in siege.inbox()))
    with siege.raw() as raw:
        raw.say(hello(), announced(offer.work, data))
        assert raw.hear("resume").offset == 100
        raw.say(FromClient(chunk=Chunk(work=offer.work, offset=100, data=data[100:])))
        assert raw.hear("acknowledged").counted
        assert values(collect()) == {2: 1.0, 3: 7.0}
    siege.check_honest()


@pytest.mark.parametrize("fault", ["it hangs up", "the store fails"])
def test_a_client_that_is_lost_while_it_is_being_noted_is_not_there_for_ever(
    world: World, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A ghost would keep every round without a deadline open."""
    noting, go_on = Event(), Event()

    def seen(name: str, version: str) -> None:
        if name == "site-1":
            noting.set()
            assert go_on.wait(10.0)
            if fault == "the store fails":
                raise StoreError("the disk is full")

    with besieged(world, seen=seen) as siege, siege.raw() as raw:
        raw.say(hello())
        assert noting.wait(10.0)
        assert "site-1" in siege.host.hub.connected()
        if fault == "it hangs up":
            raw.hang_up()
            eventually(lambda: "site-1" not in siege.host.hub.connected())
            go_on.set()
        else:
            go_on.set()
            raw.say(FromClient(heartbeat=Heartbeat(number=3)))
            assert raw.hear("heartbeat").number == 3
            assert "the disk is full" in caplog.text
        siege.check_honest()


def test_a_server_whose_store_cannot_be_read_says_so_without_its_paths(world: World) -> None:
    def admit(name: str, certificate: bytes) -> None:
        if name == "site-1":
            raise StoreError("cannot read /srv/fedlora/fedlora.db")

    with besieged(world, admit=admit) as siege, siege.raw() as raw:
        goodbye = raw.hear("goodbye")
        assert goodbye.reason == "the server cannot let clients in now"
        assert goodbye.retry
        siege.check_honest()


def test_an_update_that_cannot_be_stored_ends_the_connection_without_the_servers_paths(
    siege: Siege, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Inbox, path: Path, work: str) -> Path:
        raise StoreError(f"cannot store {path}")

    with siege.round() as (raw, offer):
        keep = Inbox.keep
        monkeypatch.setattr(Inbox, "keep", lambda s, p, w: (full if w == offer.work else keep)(s, p, w))
        upload(raw, offer.work, answer(offer, 1))
        assert raw.ended() == "the server cannot store the update now"


def test_a_fault_of_the_server_itself_costs_one_connection(
    siege: Siege, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Inbox, said: object) -> None:
        raise ZeroDivisionError("secret")

    with siege.round() as (raw, offer):
        receive = Inbox.receive
        monkeypatch.setattr(Inbox, "receive", lambda s, said: (broken if said.work == offer.work else receive)(s, said))
        raw.say(announced(offer.work, b"abc"))
        assert "its log says why" in raw.ended()
        assert "ZeroDivisionError" in caplog.text


def requests(siege: Siege, how_often: int) -> list[str]:
    """What becomes of so many renewals."""
    import grpc

    from fedlora.link.v1.link_pb2 import Certificate, RenewRequest

    key, certificate = siege.shown
    credentials = grpc.ssl_channel_credentials(siege.world.authority.certificate, key, certificate)
    found = []
    with grpc.secure_channel(f"localhost:{siege.world.port}", credentials) as channel:
        renew = channel.unary_unary("/fedlora.v1.Link/Renew", RenewRequest.SerializeToString, Certificate.FromString)
        for _ in range(how_often):
            with pytest.raises(grpc.RpcError) as refused:
                renew(RenewRequest(signing_request=b"x"), timeout=10.0)
            found.append(refused.value.code().name)
    return found


def test_who_asks_for_certificates_all_the_time_is_refused(siege: Siege) -> None:
    found = requests(siege, limits.REQUESTS + 3)
    assert found == ["PERMISSION_DENIED"] * limits.REQUESTS + ["RESOURCE_EXHAUSTED"] * 3
    siege.check_honest()
