"""Arbitrary frames against a live server: it goes on, accepts nothing, and writes nowhere but into its inbox."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlora.errors import IdentityError
from fedlora.identity import enrolment as steps
from fedlora.identity.keys import new_key, signing_request
from fedlora.identity.registry import Registry
from fedlora.link import limits
from fedlora.link.v1.link_pb2 import FromClient, JoinRequest, Offer
from fedlora.link.works import Ending
from fedlora.server.store.database import Database
from tests.link.raw import announced, answer, chunks, hello
from tests.link.siege import Siege, besieged
from tests.link.test_content import mangled
from tests.link.test_enrolment import opened
from tests.link.world import World, eventually, make_world, message

OWN, OTHERS, NOBODYS = "<the offender's work>", "<another's work>", "0" * 64
SIZE = 64
"""Bytes of the answer with which arbitrary announcements and chunks may meet."""


def message_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any message of a protobuf type; of a choice one part, or none."""
    choices = [list(choice.fields) for choice in kind.oneofs]
    chosen = {part.name for parts in choices for part in parts}
    always = {part.name: value_of(part) for part in kind.fields if part.name not in chosen}
    picks = [st.one_of(st.just({}), *(value_of(p).map(lambda v, n=p.name: {n: v}) for p in parts)) for parts in choices]
    whole = st.tuples(st.fixed_dictionaries({}, optional=always), *picks)
    return whole.map(lambda parts: kind._concrete_class(**{k: v for part in parts for k, v in part.items()}))


def value_of(part: Any) -> st.SearchStrategy[Any]:
    if part.message_type:
        one = message_of(part.message_type)
    elif part.name == "work":
        one = st.one_of(st.sampled_from([OWN, OTHERS, NOBODYS, "../x", "a" * 63 + "/"]), st.text(max_size=70))
    else:
        one = VALUES[part.type]
    return st.lists(one, max_size=5) if part.is_repeated else one


_KINDS = FromClient.DESCRIPTOR.fields[0]
VALUES: dict[int, st.SearchStrategy[Any]] = {
    _KINDS.TYPE_UINT64: st.one_of(st.integers(0, SIZE + 2), st.integers(0, 2**64 - 1)),
    _KINDS.TYPE_UINT32: st.integers(0, 2**32 - 1),
    _KINDS.TYPE_BOOL: st.booleans(),
    _KINDS.TYPE_STRING: st.text(max_size=50),
    _KINDS.TYPE_BYTES: st.one_of(st.binary(max_size=SIZE + 2), st.binary(min_size=32, max_size=32)),
}
arbitrary = message_of(FromClient.DESCRIPTOR)


@st.composite
def about_a_work(draw: st.DrawFn) -> FromClient:
    """Anything that is said about a work which there is."""
    kinds = [part for part in FromClient.DESCRIPTOR.fields if "work" in part.message_type.fields_by_name]
    kind = draw(st.sampled_from(kinds))
    found = draw(message_of(kind.message_type))
    found.work = draw(st.sampled_from([OWN, OTHERS]))
    return FromClient(**{kind.name: found})


somewhere_to_go = st.just(announced(OWN, bytes(SIZE), sha256=b"1" * 32))
noise = st.one_of(arbitrary, st.binary(max_size=100), mangled(hello().SerializeToString()))
spoken = st.lists(st.one_of(about_a_work(), about_a_work(), somewhere_to_go, noise), min_size=1, max_size=12)


@dataclass
class Field:
    """A siege with a work that each site is asked for, for as long as the offender does not end its own."""

    siege: Siege
    before: set[Path]
    collect: Any = None

    def begin(self) -> None:
        self.siege.rounds += 1
        self.collect = self.siege.grid.ask([message(i, self.siege.rounds) for i in (1, 2)])

    def end(self) -> None:
        """Ends this round and begins another."""
        self.siege.host.call(_end(self.siege, "site-2"))
        list(self.collect())
        self.siege.grid.committed(self.siege.rounds)
        self.begin()

    def offer(self, site: str) -> Offer:
        return self.siege.open_offer(site)

    def ends(self) -> list[Any]:
        works = {work.site: work for work in self.siege.host.hub.works.values()}
        return [works[s].ended.result().how if works[s].ended.done() else None for s in ("site-1", "site-2")]

    def files(self) -> set[Path]:
        return {path for path in self.siege.world.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def battle(world: World) -> Iterator[Field]:
    with besieged(world) as siege:
        siege.check_honest()
        siege.grid.sites = ["site-0", "site-1", "site-2"]
        siege.grid.absence = 1e6
        found = Field(siege, set())
        found.before = found.files()
        found.begin()
        yield found
        siege.grid.absence = 0.2
        for site in ("site-1", "site-2"):
            siege.host.call(_end(siege, site))
        list(found.collect())
        siege.check_honest()


async def _end(siege: Siege, site: str) -> None:
    for work in siege.host.hub.works.values():
        if work.site == site:
            work.end(Ending.LOST, reason="the test is over")


def addressed(frame: FromClient, field: Field) -> FromClient:
    """With the ids of real works."""
    kind = frame.WhichOneof("said")
    part = getattr(frame, kind) if kind else None
    real = {OWN: "site-1", OTHERS: "site-2"}
    if part is not None and getattr(part, "work", "") in real:
        part.work = field.offer(real[part.work]).work
    return frame


def check(field: Field, frames: list[Any]) -> None:
    """Nothing was accepted, nobody else's work has ended, and files are where they belong."""
    how, others = field.ends()
    assert others is None
    if how is not None:
        own = field.offer("site-1").work
        assert how in (Ending.DECLINED, Ending.FAILED)
        assert any(getattr(f, k).work == own for f in frames for k in ("decline", "failed") if f.HasField(k))
    incoming = field.siege.world.folder / "run-1" / "incoming"
    for path in field.files() - field.before:
        assert path.parent == incoming
        assert re.fullmatch(r"[0-9a-f]{64}-[0-9a-f]{16}\.part", path.name)
        assert path.stat().st_size <= limits.ANSWER_SLACK + 2048
        assert path.stat().st_mode & 0o077 == 0
    if how is not None:
        field.end()


@given(frames=spoken, greeted=st.sampled_from([True, True, True, False]))
@settings(max_examples=300)
def test_arbitrary_frames_do_nothing_but_end_their_connection(battle: Field, frames: list[Any], greeted: bool) -> None:
    battle.siege.forgive()
    said = [addressed(FromClient.FromString(f.SerializeToString()), battle) for f in frames if not isinstance(f, bytes)]
    parts = iter(said)
    with battle.siege.raw() as raw:
        if greeted:
            raw.say(hello())
        raw.say(*(f if isinstance(f, bytes) else next(parts) for f in frames))
        raw.close()
        raw.ended()
    eventually(lambda: "site-1" not in battle.siege.host.hub.connected())
    check(battle, said)


@given(data=st.data())
@settings(max_examples=60)
def test_an_upload_with_anything_wrong_is_not_kept(battle: Field, data: st.DataObject) -> None:
    """An honest upload, with one frame of it changed, left out, doubled or moved."""
    battle.siege.forgive()
    own = battle.offer("site-1")
    whole = answer(own, 1)
    frames: list[FromClient | bytes] = [announced(own.work, whole), *chunks(own.work, whole, 300)]
    at = data.draw(st.integers(0, len(frames) - 1))
    changed = frames[at]
    assert isinstance(changed, FromClient)
    wrong = data.draw(st.sampled_from(["left out", "doubled", "moved", "changed"]))
    if wrong == "left out":
        del frames[at]
    elif wrong == "doubled":
        frames.insert(at, changed)
    elif wrong == "moved":
        frames.insert(data.draw(st.integers(0, len(frames) - 1).filter(lambda n: n != at)), frames.pop(at))
    else:
        frames[at] = data.draw(mangled(changed.SerializeToString()))
    with battle.siege.raw() as raw:
        raw.say(hello(), *frames)
        raw.close()
        raw.ended()
    eventually(lambda: "site-1" not in battle.siege.host.hub.connected())
    kept = battle.siege.world.folder / "run-1" / "incoming" / f"{own.work}.answer"
    if kept.exists():  # announcing twice is no fault, nor is a change that protobuf does not see
        assert kept.read_bytes() == whole
        battle.end()
    for path in (battle.siege.world.folder / "run-1" / "incoming").glob("*.part"):
        path.unlink()


# Strangers.


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    database = Database(sa.URL.create("sqlite", database=str(folder / "fedlora.db")), folder)
    yield Registry(database)
    database.close()


REQUEST = signing_request(new_key(), "any")


@given(token=st.text(max_size=60), request=st.one_of(st.binary(max_size=200), mangled(REQUEST), st.just(REQUEST)))
@settings(max_examples=150)
@example("", b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n")
@example("x" * 43, REQUEST + REQUEST)
def test_no_token_and_no_request_do_more_than_be_refused(
    world: World, registry: Registry, token: str, request: bytes
) -> None:
    with pytest.raises(IdentityError):
        steps.join(registry, world.authority, token, request)
    assert not registry.clients()


@given(
    data=st.one_of(
        st.binary(max_size=100), mangled(JoinRequest(token="x" * 43, signing_request=REQUEST).SerializeToString())
    )
)
@settings(max_examples=60)
def test_no_bytes_at_the_strangers_port_do_more_than_be_refused(office: Any, data: bytes) -> None:
    credentials = grpc.ssl_channel_credentials(office.world.authority.certificate)
    with grpc.secure_channel(f"localhost:{office.port}", credentials) as channel:
        ask = channel.unary_unary("/fedlora.v1.Enrolment/Join", lambda sent: sent, lambda got: got)
        with pytest.raises(grpc.RpcError) as refused:
            ask(data, timeout=10.0)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not office.registry.clients()


@pytest.fixture(scope="module")
def office(world: World, registry: Registry) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlora.link.enrolment.FAILURES", 10**6)
        with opened(world, registry) as found:
            yield found
