"""What the dashboard and the command line show: plain values, ready for JSON. No number is NaN or infinite.

Sizes are bytes of serialised tensors, durations seconds, times UTC. Fields that may hold something about single clients
say so; `visibility` blanks them for those who may not see them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from fedlora.server.views.client_model import ClientPrivacy as ClientPrivacy
from fedlora.server.views.client_model import ClientRow as ClientRow
from fedlora.server.views.client_model import Refusal as Refusal

Health = Literal["ok", "waiting", "slow", "stalled", ""]
"""ok: commits come as expected. waiting: for its turn, or for its first round. slow: amber. stalled: red. "": ended."""

Status = Literal["queued", "running", "interrupted", "stopping", "finished", "stopped", "failed"]
Privacy = Literal["none", "local", "central"]
Column = Sequence[float | int | None]


@dataclass(frozen=True)
class RunRow:
    """One run in a list.

    health_reason: a sentence with the probable cause, naming clients; "" where nothing is wrong. round: the last
    committed one; rounds: in all. metric_name, metric: the task's main figure of the global model and its last known
    value; test_metric: the same on the test split. epsilon: spent so far as the run's own statement counts it (under
    local DP the largest of a site, by the roster); epsilon_at_most: whether it is an upper bound, as the exact value is
    not computed; epsilon_total: promised for the whole run. bytes: None where they are not for the viewer.
    expected_seconds: a round's. participation: a sentence about sites that are not in the model, or "".
    """

    id: str
    name: str
    status: Status
    health: Health
    health_reason: str
    strategy: str
    seed: int
    round: int
    rounds: int
    metric_name: str
    metric: float | None
    test_metric: float | None
    privacy: Privacy
    epsilon: float | None
    epsilon_at_most: bool
    epsilon_total: float | None
    delta: float | None
    bytes_up: int | None
    bytes_down: int | None
    bytes_once: int | None
    last_commit: datetime | None
    expected_seconds: float | None
    eta_seconds: float | None
    created_at: datetime
    finished_at: datetime | None
    participation: str
    reason: str
    sweep: str | None
    stop_requested: bool


@dataclass(frozen=True)
class Series:
    """Columns by name, one entry for each committed round (column "round"); None where a round has no such number.

    units: name → unit ("s", "bytes", "nats", "" for plain numbers). labels: name → words for an axis.
    """

    columns: Mapping[str, Column]
    units: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Spread:
    """A metric over the clients that reported, by round: columns of equal length. Operator's under central DP."""

    metric: str
    label: str
    unit: str
    round: Sequence[int]
    min: Column
    q1: Column
    median: Column
    q3: Column
    max: Column
    n: Sequence[int]


@dataclass(frozen=True)
class Matrix:
    """Who was asked when, and what became of it. Operator's under central DP.

    cells: for each of `clients` a string with one letter for each of `rounds`; "." where it was not asked. legend:
    letter → outcome. numbers: the clients' numbers in the run. counts: for each client, letter → how often.
    """

    clients: Sequence[str]
    numbers: Sequence[int]
    rounds: Sequence[int]
    cells: Sequence[str]
    legend: Mapping[str, str]
    counts: Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class RosterLine:
    """One client in one round. Operator's under central DP. client: its name, or its number where it is virtual."""

    client: str
    number: int
    outcome: str
    reason: str
    samples: int
    bytes_up: int
    bytes_down: int
    seconds: float
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class ClientEvent:
    """What the server's log of a run says of a client. Operator's under central DP. position: its place in the log."""

    position: int
    time: datetime
    round: int
    client: str
    number: int
    event: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class ClientEvents:
    """Newest first. before: give it to get older ones; None: there are none."""

    events: Sequence[ClientEvent]
    before: int | None


@dataclass(frozen=True)
class Difference:
    """A setting (dotted key) that two runs have different values of; None where one has no such key."""

    key: str
    here: Any
    there: Any


@dataclass(frozen=True)
class CheckpointRow:
    """A committed round whose checkpoint is on the disk. bytes: of its files. metric: the run's main figure then."""

    round: int
    committed_at: datetime | None
    bytes: int
    metric: float | None


@dataclass(frozen=True)
class Figure:
    """A final figure of repeated runs: mean and sample standard deviation (None for one run) of `n` values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """The main metric of repeated runs at the rounds that all of them have. sd: None for a single run."""

    round: Sequence[int]
    mean: Sequence[float]
    sd: Sequence[float | None]


@dataclass(frozen=True)
class Group:
    """Runs of one configuration but for the seed. label: what sets it apart from the other groups."""

    label: str
    runs: Sequence[str]
    seeds: Sequence[int]
    figures: Mapping[str, Figure]
    curve: Curve


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other. series: by run id. figures: the names of all groups' figures, in order.

    metric: the column that all of them can be compared by, e.g. "validation_accuracy".
    """

    rows: Sequence[RunRow]
    series: Mapping[str, Series]
    groups: Sequence[Group]
    figures: Sequence[str]
    metric: str
    labels: Mapping[str, str]
    units: Mapping[str, str]


@dataclass(frozen=True)
class OwnRound:
    """What became of one site in a round that asked it."""

    round: int
    outcome: str
    reason: str
    samples: int
    bytes_up: int
    bytes_down: int
    seconds: float


@dataclass(frozen=True)
class Mine:
    """All that one site may see of a run: itself, and the global model's figures; nothing of others.

    series: the released metrics by round. counts: outcome → rounds, of this site. epsilon: after its rounds by the
    server's roster (None: not computed, or no DP); promised: at most, over the run; statement: the promise in words.
    """

    run: str
    run_name: str
    site: str
    status: Status
    round: int
    rounds: int
    metric_name: str
    series: Series
    own: Sequence[OwnRound]
    counts: Mapping[str, int]
    bytes_up: int
    bytes_down: int
    privacy: Privacy
    epsilon: float | None
    promised: float | None
    delta: float | None
    statement: str
    last_commit: datetime | None = None
    notes: Sequence[str] = field(default_factory=tuple)
