"""The clients of a server, over all of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fedlora.identity.records import ClientRecord
from fedlora.server.records import RunInfo
from fedlora.server.views.epsilon import Epsilons, promise
from fedlora.server.views.facts import Facts, facts
from fedlora.server.views.model import ClientPrivacy, ClientRow, Refusal
from fedlora.server.views.presence import Whereabout
from fedlora.server.views.queries import LETTERS
from fedlora.server.views.tallies import REASONS, Shares, Tallies


@dataclass(frozen=True)
class Told:
    """What a client says of itself over the link: nobody has checked it."""

    version: str = ""
    data: Sequence[str] = ()
    work: str | None = None
    device: str | None = None
    policy: Sequence[str] = ()


class Clients:
    """Of one store."""

    def __init__(self, tallies: Tallies, epsilons: Epsilons) -> None:
        self._tallies, self._epsilons = tallies, epsilons

    def rows(
        self,
        records: Sequence[ClientRecord],
        runs: Sequence[RunInfo],
        whereabout: Whereabout,
        told: Mapping[str, Told],
    ) -> Sequence[ClientRow]:
        """One for each record. runs: those that count, newest first."""
        rows = {record.name: _present(record, whereabout, told.get(record.name, Told())) for record in records}
        for run in runs:
            names = facts(run)
            present = [name for name in names.sites if name in rows]
            if not present or not run.rounds_done:
                continue
            shares = self._tallies.of(run)
            for name in present:
                rows[name] = self._with(rows[name], run, names, shares)
        return list(rows.values())

    def _with(self, row: ClientRow, run: RunInfo, names: Facts, shares: Shares) -> ClientRow:
        client = names.sites.index(row.name)
        tally = shares.counts.get(client)
        if tally is None:
            return row
        counts = {str(outcome): tally.counts.get(letter, 0) for letter, outcome in LETTERS.items()}
        reasons = [
            Refusal(run.id, run.name, said.round, said.outcome, said.reason) for said in shares.refusals.get(client, ())
        ]
        spent = self.privacy(run, names, sum(counts.values()) - counts["declined"])
        return replace(
            row,
            **{outcome: getattr(row, outcome) + count for outcome, count in counts.items()},
            asked=row.asked + sum(tally.counts.values()),
            bytes_up=row.bytes_up + tally.bytes_up,
            bytes_down=row.bytes_down + tally.bytes_down,
            last_reasons=[*row.last_reasons, *reasons][:REASONS],
            privacy=[*row.privacy, *([] if spent is None else [spent])],
        )

    def privacy(self, run: RunInfo, names: Facts, rounds: int) -> ClientPrivacy | None:
        """What a run promised to a site that may have spent in so many rounds; None without DP."""
        promised = promise(run)
        if names.privacy == "none" or promised.total is None:
            return None
        central = names.privacy == "central"
        counted = run.rounds_done if central else rounds
        known = self._epsilons.known(run, promised)
        return ClientPrivacy(run.id, run.name, counted, known.get(counted), promised.total, promised.delta, central)


def _present(record: ClientRecord, whereabout: Whereabout, told: Told) -> ClientRow:
    there = whereabout.of(record.name)
    return ClientRow(
        name=record.name,
        status=str(record.status),
        reason=record.reason,
        connected=there.connected,
        last_seen=_latest(record.last_seen, there.since),
        away_since=None if there.connected else there.since,
        enrolled_at=record.enrolled_at,
        version=told.version or record.version,
        data=tuple(told.data),
        paused=there.paused,
        work=told.work,
        device=told.device,
        policy=tuple(told.policy),
        certificate_expires=record.certificate_expires,
        invitation_expires=record.invitation_expires,
    )


def _latest(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((moment for moment in (one, other) if moment is not None), default=None)
