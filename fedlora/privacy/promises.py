"""The one table of which combination carries which privacy guarantee: command line, validator, report and docs read it.

A combination is refused if it could only pretend, carries no guarantee for a reason, or carries the one of its mode.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedlora.config.schema import RunConfig
from fedlora.strategies.base import Strategy

Test = Callable[[RunConfig, Strategy], bool]


@dataclass(frozen=True)
class Row:
    """One row: what it is about, whether it applies, and the reason in words. keys: the settings it is about."""

    about: str
    applies: Test
    because: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Mode:
    """A way of being private. protects: what one unit is. trusted: who sees what is not noised."""

    name: str
    title: str
    protects: str
    trusted: str
    released: str


MODES: Mapping[str, Mode] = {
    "none": Mode(
        "none", "no differential privacy", "nothing", "everyone who receives an update", "updates as they are"
    ),
    "dp": Mode(
        "dp",
        "local DP-SGD at each client",
        "a record, or all rows of a unit (privacy.unit), of one client",
        "nobody beyond the client itself",
        "each round's noised tensors and, with eval=clients, noised counts; all that the server makes of them",
    ),
    "central": Mode(
        "central",
        "central DP, client by client",
        "all that one client holds",
        "the server, which sees single updates and who took part",
        "the global model after each round, and the noised figures beside it",
    ),
}

REFUSED: tuple[Row, ...] = (
    Row(
        "start from private gradients",
        lambda config, method: config.privacy.name != "none" and method.reads_private_data,
        "its start gives everyone the un-noised gradient of the clients' rows, which no later noise takes back: choose"
        " strategy.init=weights or random",
        ("strategy.init", "privacy.name"),
    ),
    Row(
        "noised start without local DP",
        lambda config, method: config.privacy.name != "dp" and method.private_start,
        "its start asks clients for sketches that they noise and account for themselves, which they do under privacy=dp"
        " alone",
        ("strategy.init", "privacy.name"),
    ),
    Row(
        "central DP and single updates",
        lambda config, method: config.privacy.name == "central" and method.single_updates,
        "its aggregation compares clients' single updates, and central DP shows it their noised mean alone: use"
        " privacy=dp, or another strategy",
        ("strategy.name", "privacy.name"),
    ),
    Row(
        "the server's validation rows as public rows",
        lambda config, method: (  # noqa: ARG005
            (config.privacy.name == "central" or (config.privacy.local and config.privacy.unit != "record"))
            and config.strategy.options.get("init") == "public"
        ),
        "init=public reads the validation split, and the same person or client may have rows there and in training:"
        " choose strategy.init=weights or random",
        ("strategy.init", "privacy.name"),
    ),
)
"""Combinations that are configuration mistakes."""

WITHOUT: tuple[Row, ...] = (
    Row(
        "no privacy mode",
        lambda config, method: config.privacy.name == "none",  # noqa: ARG005
        "there is no differential privacy in this run: what a client sends can reveal its rows",
        ("privacy.name",),
    ),
    Row(
        "central DP with a deadline",
        lambda config, method: config.privacy.name == "central" and config.federation.timeout is not None,  # noqa: ARG005
        "virtual clients share a machine and the round's deadline (federation.timeout), so that one can make others"
        " late: leave it out",
        ("federation.timeout",),
    ),
    Row(
        "seeded noise",
        lambda config, method: config.privacy.noise == "seeded",  # noqa: ARG005
        "the noise comes from the run's seed (privacy.noise=seeded), and whoever knows the seed can take it off: for"
        " simulations and tests only",
        ("privacy.noise",),
    ),
)
"""Combinations that run and carry no guarantee."""


def refused(config: RunConfig, method: Strategy) -> list[Row]:
    """The rows for which `config` with `method` must not run."""
    return [row for row in REFUSED if row.applies(config, method)]


def lacking(config: RunConfig, method: Strategy) -> str | None:
    """Why the combination carries no guarantee; None if it carries that of its mode."""
    return next((row.because for row in WITHOUT if row.applies(config, method)), None)


def table() -> list[tuple[str, str, str]]:
    """(combination, what it carries, why) for the docs."""
    rows = [(row.about, "refused", row.because) for row in REFUSED]
    rows += [(row.about, "no guarantee", row.because) for row in WITHOUT]
    rows += [
        (f"privacy={mode.name}", mode.title, f"protects {mode.protects}; trusted: {mode.trusted}")
        for mode in MODES.values()
        if mode.name != "none"
    ]
    return rows
