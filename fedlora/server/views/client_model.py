"""What is shown of the clients of a server: plain values, ready for JSON. `model` has them too."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Refusal:
    """An answer that did not count."""

    run: str
    run_name: str
    round: int
    outcome: str
    reason: str


@dataclass(frozen=True)
class ClientPrivacy:
    """What one run promised to one site. rounds: in which it counts as having spent, by the server's roster.

    epsilon: after those rounds, None where that is not computed; promised: at most, over the whole run; delta: for
    both. central: the promise is about the global model, and the same for all sites. What the site has really spent is
    in its owner's ledger, which never travels.
    """

    run: str
    run_name: str
    rounds: int
    epsilon: float | None
    promised: float | None
    delta: float | None
    central: bool


@dataclass(frozen=True)
class ClientRow:
    """A client of the server, over all of its runs. Operator's as a whole where a run of it is under central DP.

    status: invited, active or revoked. paused: why, None: it is not. work: what it has in hand. away_since: when it
    was connected last, as far as this process knows. version, data, device, policy: what it said when it connected, as
    far as its owner lets it tell; shown, and never relied on. device: None: not told. policy: a line each; none: not
    told.
    """

    name: str
    status: str
    reason: str
    connected: bool
    last_seen: datetime | None
    away_since: datetime | None
    enrolled_at: datetime | None
    version: str
    data: Sequence[str]
    paused: str | None
    work: str | None
    certificate_expires: datetime | None
    invitation_expires: datetime | None
    asked: int = 0
    reported: int = 0
    declined: int = 0
    rejected: int = 0
    failed: int = 0
    lost: int = 0
    late: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    last_reasons: Sequence[Refusal] = ()
    privacy: Sequence[ClientPrivacy] = ()
    device: str | None = None
    policy: Sequence[str] = ()
