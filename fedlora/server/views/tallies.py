"""What each client did over all rounds of a run: sums, and its last refusals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedlora.server.records import RunInfo
from fedlora.server.views.growing import Growing
from fedlora.server.views.queries import Queries, Said, Span, Tally

REASONS = 3
"""Refusals that are kept of each client."""


@dataclass(frozen=True)
class Shares:
    """Of one run, by client. refusals: newest first, `REASONS` at most."""

    counts: Mapping[int, Tally]
    refusals: Mapping[int, Sequence[Said]]


@dataclass
class _Sums:
    counts: dict[int, Tally] = field(default_factory=dict)
    refusals: dict[int, list[Said]] = field(default_factory=dict)

    def shown(self) -> Shares:
        return Shares(dict(self.counts), {client: tuple(found) for client, found in self.refusals.items()})


class Tallies:
    """Of one store."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._sums = Growing[_Sums, Shares](queries, _Sums, self._more, _Sums.shown, keep=1000)

    def of(self, run: RunInfo) -> Shares:
        """Of a run that was just read."""
        return self._sums.of(run)

    def _more(self, sums: _Sums, span: Span, key: str) -> None:
        del key
        tallies, said = self._queries.tallies(span), self._queries.refusals(span, REASONS)
        for client, tally in tallies.items():
            sums.counts[client] = _sum(sums.counts.get(client, Tally({}, 0, 0)), tally)
        newest: dict[int, list[Said]] = {}
        for refusal in said:
            newest.setdefault(refusal.client, []).append(refusal)
        for client, found in newest.items():
            sums.refusals[client] = [*found, *sums.refusals.get(client, [])][:REASONS]


def _sum(one: Tally, other: Tally) -> Tally:
    counts = {
        letter: one.counts.get(letter, 0) + other.counts.get(letter, 0) for letter in {**one.counts, **other.counts}
    }
    return Tally(counts, one.bytes_up + other.bytes_up, one.bytes_down + other.bytes_down)
