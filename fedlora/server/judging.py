"""From a reply to what it counts as: the gate, what a refusal has cost, and what an update from an earlier round is."""

import logging
from dataclasses import replace

from flwr.app import Message

from fedlora.adapters.manifest import Tensors
from fedlora.server.admission import Expected, Verdict, admit
from fedlora.server.records import Outcome
from fedlora.strategies.staleness import damping, moved
from fedlora.wire import Answer

log = logging.getLogger(__name__)

STALENESS = "staleness"
"""In a roster row's metrics: the rounds that had ended between the one that an update was begun in and its own."""


def judged(reply: Message, client: int, expected: Expected) -> Verdict:
    """What the gate says of a reply, with what that has cost its client."""
    verdict = admit(reply, client, expected)
    return spent_unused(verdict) if expected.private else verdict


def spent_unused(verdict: Verdict) -> Verdict:
    """Under local DP an update that was sent and not counted has cost its client: the roster says so."""
    if verdict.row.outcome is not Outcome.REJECTED:
        return verdict
    return replace(verdict, row=replace(verdict.row, reason=f"{verdict.row.reason} (its ε is spent, unused)"))


def as_of(verdict: Verdict, begun: Expected, now: Expected) -> Verdict:
    """What an admitted update that was `begun` in one round counts as in another: moved to the state of `now`.

    One that was begun in that round is as it came, bit for bit; one that is too old does not count.
    """
    if verdict.answer is None:
        return verdict
    staleness = now.round - begun.round
    row = replace(verdict.row, metrics={**verdict.row.metrics, STALENESS: float(staleness)})
    if staleness > now.rules.max_staleness:
        unused = " (its ε is spent, unused)" if now.private else ""
        return Verdict(replace(row, outcome=Outcome.LATE, reason=f"{too_old(begun, now)}{unused}"))
    tensors = verdict.answer.tensors if not staleness else _moved(verdict.answer, begun, now, staleness)
    return Verdict(row, replace(verdict.answer, tensors=tensors))


def _moved(answer: Answer, begun: Expected, now: Expected, staleness: int) -> Tensors:
    return moved(answer.tensors, begun.before, now.before, damping(staleness, now.rules.staleness))


def too_old(begun: Expected, now: Expected) -> str:
    """Why an update that was `begun` so long ago does not count."""
    return (
        f"its update was begun in round {begun.round}, more than federation.max_staleness={now.rules.max_staleness}"
        f" rounds before round {now.round}"
    )


def evenly(answers: list[Answer]) -> list[Answer]:
    """The answers with the counts of rows that are their weights. If an owner keeps a count, all count alike."""
    if not any(answer.withheld for answer in answers):
        return answers
    log.info("a site keeps its number of rows to itself: all updates of this round count alike")
    return [replace(answer, samples=1) for answer in answers]
