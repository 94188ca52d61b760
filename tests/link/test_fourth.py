"""Three honest clients and one that lies: three answers are admitted, the fourth is rejected with a named reason."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from fedlora.config.schema import FederationConfig
from fedlora.link.host import LinkHost
from fedlora.link.v1.link_pb2 import Offer
from fedlora.server.admission import Expected, Verdict, admit
from fedlora.server.records import Outcome
from tests.link.raw import Raw, answer, hello, upload
from tests.link.test_content import CRAFTED, with_tensor
from tests.link.world import Daemon, Scripted, World, eventually, make_world, manifest, message

SITES = ["site-0", "site-1", "site-2", "site-3"]
LIAR = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("fourth"))


@pytest.fixture(scope="module")
def host(world: World) -> Iterator[LinkHost]:
    with world.server() as host, ExitStack() as stack:
        for number in range(LIAR):
            folder = world.folder / "answers" / str(number)
            stack.callback(Daemon(world.dial(SITES[number]), Scripted(number), folder).stop)
        eventually(lambda: len(host.hub.connected()) == LIAR)
        yield host


ROUNDS = iter(range(1, 1000))


def a_round(world: World, host: LinkHost, lie: Callable[[Offer], bytes]) -> list[Verdict]:
    """What the gate says of each of the four."""
    number = next(ROUNDS)
    eventually(lambda: "site-3" not in host.hub.connected())
    grid = world.grid(host, SITES)
    with Raw(world, "site-3") as raw:
        raw.say(hello())
        collect = grid.ask([message(i, number) for i in range(4)])
        offer = raw.hear("offer")
        upload(raw, offer.work, lie(offer))
        assert raw.hear("acknowledged").counted  # it is durable; whether it is any good, the gate says
        replies = list(collect())
    grid.committed(number)
    expected = Expected("run-1", number, manifest(), {"head": np.zeros(32, np.float32)}, FederationConfig())
    return [admit(reply, client, expected) for client, reply in enumerate(replies)]


def head(value: float, shape: tuple[int, ...] = (32,), dtype: str = "float32") -> dict[str, np.ndarray]:
    return {"head": np.full(shape, value, dtype)}


OLD: list[bytes] = []

LIES: dict[str, tuple[Callable[[Offer], bytes], str]] = {
    "not a number": (lambda offer: answer(offer, LIAR, tensors=head(math.nan)), "32 values that are NaN or infinite"),
    "infinite": (lambda offer: answer(offer, LIAR, tensors=head(math.inf)), "32 values that are NaN or infinite"),
    "a shape that would broadcast": (lambda offer: answer(offer, LIAR, tensors=head(7, (1,))), "the manifest says"),
    "another shape": (lambda offer: answer(offer, LIAR, tensors=head(7, (4, 8))), "the manifest says"),
    "too much": (lambda offer: answer(offer, LIAR, tensors=head(7, (3200,))), "needs at most"),
    "another precision": (lambda offer: answer(offer, LIAR, tensors=head(7, (16,), "float64")), "float64"),
    "no tensor": (lambda offer: answer(offer, LIAR, tensors={}), "'head' is missing"),
    "one tensor more": (lambda offer: answer(offer, LIAR, tensors={**head(7), "x": np.ones(1)}), "not expected"),
    "a trillion rows": (lambda offer: answer(offer, LIAR, samples=10**12), "claims 1000000000000 training rows"),
    "fewer than no rows": (lambda offer: answer(offer, LIAR, samples=-9), "claims -9 training rows"),
    "no rows": (lambda offer: answer(offer, LIAR, samples=0), "claims 0 training rows"),
    "rows that are no number": (lambda offer: answer(offer, LIAR, samples=math.nan), "not a whole number"),
    "another's name": (lambda offer: answer(offer, 0), "for client 0, but client 3 was asked"),
    "another round": (lambda offer: answer(offer, LIAR, round=offer.round + 1), "was asked"),
    "another run": (lambda offer: answer(offer, LIAR, run="run-2"), "for run 'run-2'"),
    "its answer of the round before": (lambda offer: OLD[-1], "was asked"),
    "garbage": (lambda offer: b"\xff" * 1000, "no content of fedlora.v1"),
    "one byte": (lambda offer: b"\0", "no content of fedlora.v1"),
    "nothing that it should be": (lambda offer: b"\x22\x00", "has no 'arrays'"),
    "a pickle": (lambda offer: b"\x80\x04\x95" + bytes(100), "no content of fedlora.v1"),
    "a bomb": (lambda offer: b"\x0a\x00" * 500_100, "more than 500000 fields"),
    "a crafted tensor": (lambda offer: with_tensor(CRAFTED["4 TB"][0]), "'head' is missing"),
}


@pytest.mark.parametrize("what", LIES)
def test_three_honest_answers_are_admitted_and_the_lie_is_not(world: World, host: LinkHost, what: str) -> None:
    lie, reason = LIES[what]
    a_round(world, host, lambda offer: OLD.append(answer(offer, LIAR)) or OLD[-1])  # type: ignore[func-returns-value]
    verdicts = a_round(world, host, lie)
    for client, verdict in enumerate(verdicts[:LIAR]):
        assert verdict.row.outcome is Outcome.REPORTED
        assert verdict.answer is not None
        assert (verdict.answer.tensors["head"] == verdict.answer.round + client).all()
    assert verdicts[LIAR].answer is None
    assert verdicts[LIAR].row.outcome is Outcome.REJECTED
    assert reason in verdicts[LIAR].row.reason
    assert not list((world.folder / "run-1" / "incoming").iterdir())


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_tensor_harms_nobody_else(world: World, host: LinkHost, what: str) -> None:
    def lie(offer: Offer) -> bytes:
        from fedlora.link.v1.link_pb2 import Content

        found = Content.FromString(answer(offer, LIAR))
        found.arrays[0].tensors[0].data = CRAFTED[what][0]
        return found.SerializeToString()

    verdicts = a_round(world, host, lie)
    assert [verdict.row.outcome for verdict in verdicts] == [Outcome.REPORTED] * LIAR + [Outcome.REJECTED]
    assert "'head'" in verdicts[LIAR].row.reason


def test_the_truth_is_admitted(world: World, host: LinkHost) -> None:
    """Else the lies would prove nothing."""
    verdicts = a_round(world, host, lambda offer: answer(offer, LIAR))
    assert [verdict.row.outcome for verdict in verdicts] == [Outcome.REPORTED] * 4
