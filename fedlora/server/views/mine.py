"""What one site may see of a run: itself, and the global model."""

from collections import Counter
from collections.abc import Mapping, Sequence

from fedlora.errors import UnknownRunError
from fedlora.server.records import Outcome, RoundRecord, RunInfo
from fedlora.server.views.epsilon import Promise
from fedlora.server.views.facts import facts
from fedlora.server.views.metrics import finite, label, unit
from fedlora.server.views.model import Mine, OwnRound, RunRow, Series

LEDGER = "What you have really spent is in your own ledger (`fedlora ledger show`); the server only sees its roster."
CENTRAL = "The promise is about the model after each round; the server's operator is trusted and sees who took part."

_GLOBAL = ("validation_",)
"""Metrics of the global model. Others are put together from clients': of two sites, each could work out the other's."""

_NOISED = (*_GLOBAL, "clients_")
"""Under DP those that clients measured have noise, and are released."""


def own_number(run: RunInfo, site: str) -> int:
    """The site's number in the run. Raises UnknownRunError, the same for a run that is not the site's."""
    sites = facts(run).sites
    if site not in sites:
        raise UnknownRunError(f"no run {run.id!r} of the site {site[:80]!r}")
    return sites.index(site)


def mine(
    row: RunRow,
    site: str,
    records: Sequence[RoundRecord],
    own: Sequence[RoundRecord],
    spent: tuple[Promise, Mapping[int, float]],
) -> Mine:
    """records: all committed rounds, without rosters. own: those that asked the site, with its row alone. spent: the
    run's promise, and ε by rounds as far as it is known.
    """
    promised, known = spent
    series = released(records, _GLOBAL if row.privacy == "none" else _NOISED)
    rounds = [_own(record) for record in own]
    counts = Counter(one.outcome for one in rounds if one.round)
    used = row.round if row.privacy == "central" else sum(counts.values()) - counts[str(Outcome.DECLINED)]
    private = row.privacy != "none" and promised.total is not None
    return Mine(
        run=row.id,
        run_name=row.name,
        site=site,
        status=row.status,
        round=row.round,
        rounds=row.rounds,
        metric_name=row.metric_name if row.metric_name in series.columns else "",
        series=series,
        own=rounds,
        counts=dict(counts),
        bytes_up=sum(one.bytes_up for one in rounds),
        bytes_down=sum(one.bytes_down for one in rounds),
        privacy=row.privacy,
        epsilon=known.get(used) if private else None,
        promised=promised.total,
        delta=promised.delta,
        statement=promised.headline,
        last_commit=row.last_commit,
        notes=_NOTES.get(row.privacy, ()) if private else (),
    )


def released(records: Sequence[RoundRecord], beginnings: tuple[str, ...]) -> Series:
    """The rounds, and the metrics that begin so."""
    names = dict.fromkeys(name for record in records for name in record.metrics if name.startswith(beginnings))
    columns: dict[str, Sequence[float | int | None]] = {"round": [record.round for record in records]}
    columns |= {name: [finite(record.metrics.get(name)) for record in records] for name in names}
    return Series(columns, {name: unit(name) for name in columns}, {name: label(name) for name in columns})


def _own(record: RoundRecord) -> OwnRound:
    (row,) = record.roster
    return OwnRound(
        round=record.round,
        outcome=str(row.outcome),
        reason=row.reason,
        samples=row.samples,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        seconds=row.seconds,
    )


_NOTES: Mapping[str, Sequence[str]] = {"local": (LEDGER,), "central": (CENTRAL,)}
