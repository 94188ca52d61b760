"""The admission gate: every answer is checked before a strategy sees it. A bad one costs its sender, never the run."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from fedlora.adapters.algebra import distance, product
from fedlora.adapters.flat import Flat
from fedlora.adapters.manifest import Manifest, Tensors
from fedlora.config.schema import FederationConfig
from fedlora.link.limits import shown
from fedlora.server.records import Outcome, RosterRow
from fedlora.wire import Answer, WireError, declined_reason, payload_bytes, read_answer
from fedlora.wire_work import find_record

LOST_CODE, UNREADABLE_CODE, LATE_CODE = 5, 102, 103
"""Error codes with which an engine says that a client is gone (Flower's own), that its answer cannot be read, or that
the round needed no more when it had none yet."""


@dataclass(frozen=True)
class Expected:
    """What an answer must fit: the run, the round, and the tensors that the round started from.

    private: whether clients noise what they send; then no count and no time of theirs is read or kept.
    """

    run: str
    round: int
    manifest: Manifest
    before: Tensors
    rules: FederationConfig
    private: bool = False


@dataclass(frozen=True)
class Verdict:
    """One client's roster row, and its answer if that was admitted."""

    row: RosterRow
    answer: Answer | None = None


def admit(reply: Message, client: int, expected: Expected) -> Verdict:
    """Checks the reply that came from `client`. Never raises: what is wrong becomes the row's reason."""
    if reply.has_error():
        return refused(client, *_without_answer(reply))
    reason = declined_reason(reply.content)
    if reason is not None:
        return refused(client, Outcome.DECLINED, reason)
    try:
        answer = _finite(read_answer(reply.content, expected.manifest))
        for check in CHECKS:
            check(answer, client, expected)
    except WireError as error:
        return refused(client, Outcome.REJECTED, str(error))
    arrays = find_record(reply.content, "arrays", ArrayRecord)
    sent = 0 if arrays is None else payload_bytes(arrays, answer.tensors)
    metrics = dict(answer.metrics)
    seconds = max(0.0, metrics.pop("seconds", 0.0))
    counted: dict[str, Any] = {} if expected.private else {"samples": answer.samples, "seconds": seconds}
    return Verdict(RosterRow(client, Outcome.REPORTED, bytes_up=sent, metrics=metrics, **counted), answer)


_LINKS_OWN = {LOST_CODE: Outcome.LOST, UNREADABLE_CODE: Outcome.REJECTED, LATE_CODE: Outcome.LATE}


def _without_answer(reply: Message) -> tuple[Outcome, str]:
    """What an error says of its client."""
    outcome, reason = _LINKS_OWN.get(reply.error.code), shown(str(reply.error.reason))
    if outcome is not None:
        return outcome, reason
    return Outcome.FAILED, f"the client raised an error: {reason}"


def refused(client: int, outcome: Outcome, reason: str) -> Verdict:
    """A verdict without an answer."""
    return Verdict(RosterRow(client, outcome, reason=reason))


def check_identity(answer: Answer, client: int, expected: Expected) -> None:
    """The answer belongs to this run and round, and names the client that was asked."""
    claims = {"run": answer.run, "round": answer.round, "client": answer.client}
    facts = {"run": expected.run, "round": expected.round, "client": client}
    for name, fact in facts.items():
        if claims[name] != fact:
            raise WireError(f"the answer is for {name} {claims[name]!r}, but {name} {fact!r} was asked")


def check_samples(answer: Answer, client: int, expected: Expected) -> None:
    """The number of training rows is positive and not absurd: it may be a weight. Under local DP it is neither."""
    del client
    if expected.private:
        return
    if not 0 < answer.samples <= expected.rules.max_samples:
        limit = expected.rules.max_samples
        raise WireError(
            f"the client claims {answer.samples} training rows; 1 to {limit} (federation.max_samples) are accepted"
        )


def check_finite(answer: Answer, client: int, expected: Expected) -> None:
    """No tensor holds NaN or infinity."""
    del client, expected
    if isinstance(answer.tensors, Flat) and surely_finite(answer.tensors.vector):
        return
    for name, array in answer.tensors.items():
        if surely_finite(array):
            continue
        wrong = int(array.size - np.isfinite(array).sum())
        if wrong:
            raise WireError(f"tensor {name!r} has {wrong} values that are NaN or infinite")


_WIDE = (np.dtype(np.float32), np.dtype(np.float64))


def surely_finite(array: NDArray[Any]) -> bool:
    """True only if all values are finite: then so is their sum of squares, unless that overflows. Four times faster
    than looking at each value."""
    if array.dtype not in _WIDE:
        return False
    flat = array.ravel()
    with np.errstate(all="ignore"):  # what overflows is looked at value by value
        return math.isfinite(np.dot(flat, flat))


def check_norm(answer: Answer, client: int, expected: Expected) -> None:
    """The update's norm in product space, where rescaling B against A changes nothing, is within the bound."""
    del client
    bound = expected.rules.max_update_norm
    if bound is None:
        return
    norm = update_norm(expected.manifest, expected.before, {**expected.before, **answer.tensors})
    if not norm <= bound:  # NaN, which no comparison holds for, is no norm either
        raise WireError(f"the update's norm is {norm:.4g}, above the bound {bound:.4g} (federation.max_update_norm)")


def update_norm(manifest: Manifest, before: Tensors, after: Tensors) -> float:
    """‖s·(ΔW_after − ΔW_before)‖_F over all adapted modules, from factors."""
    pairs = ((product(manifest, after, module), product(manifest, before, module)) for module in manifest.modules())
    return manifest.scaling * math.hypot(*(distance(new, old) for new, old in pairs))


CHECKS = (check_identity, check_samples, check_finite, check_norm)


def _finite(answer: Answer) -> Answer:
    """Without the figures that are NaN or infinite: they would spoil a roster, a database and a round's averages."""
    if all(map(math.isfinite, answer.metrics.values())):
        return answer
    return replace(answer, metrics={name: value for name, value in answer.metrics.items() if math.isfinite(value)})
