"""Which sites a run was really trained with: a run that finished on a subset says so first."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.server.records import Outcome, RunHistory


@dataclass(frozen=True)
class Share:
    """One site in one run: how often it was asked, and how often its update counted."""

    site: str
    asked: int
    counted: int


def participation(history: RunHistory) -> Sequence[Share]:
    """Each site's share, in the order of the client numbers; empty for virtual clients."""
    sites = json.loads(history.run.config).get("federation", {}).get("sites", [])
    rows = [row for record in history.rounds if record.round for row in record.roster]
    asked = Counter(row.client for row in rows)
    counted = Counter(row.client for row in rows if row.outcome is Outcome.REPORTED)
    return [Share(site, asked[number], counted[number]) for number, site in enumerate(sites)]


def missing(history: RunHistory) -> Sequence[str]:
    """The sites that were asked and of which no update ever counted."""
    return [share.site for share in participation(history) if share.asked and not share.counted]


def warning(history: RunHistory) -> str:
    """A sentence about sites that are not in the model; "" if all that were asked are."""
    absent = missing(history)
    if not absent or not history.run.rounds_done:
        return ""
    return f"Trained without {', '.join(absent)}: asked, but no update of theirs ever counted."
