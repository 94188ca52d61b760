"""Rules about virtual time: what it needs, and what contradicts it."""

from collections.abc import Iterator

from fedlora.config.contradiction import Contradiction, Rule
from fedlora.config.schema import RunConfig
from fedlora.config.traces import read_trace
from fedlora.config.virtual import VirtualConfig
from fedlora.errors import ConfigError

DRAWN = ("speed_spread", "up", "down", "bandwidth_spread", "availability", "stay")
"""What a trace says instead."""


def _changed(virtual: VirtualConfig, *names: str) -> list[str]:
    """Those of the keys that do not have their default."""
    return [name for name in names if getattr(virtual, name) != VirtualConfig.model_fields[name].default]


def time_is_on(config: RunConfig) -> Iterator[Contradiction]:
    """Without a client's speed there is no time in which anything else could take any."""
    names = [name for name in VirtualConfig.model_fields if name != "sample_seconds"]
    if config.virtual.sample_seconds is not None or not (found := _changed(config.virtual, *names)):
        return
    settings = ", ".join(f"virtual.{name} = {getattr(config.virtual, name)}" for name in found)
    yield Contradiction(
        (*(f"virtual.{name}" for name in found), "virtual.sample_seconds"),
        f"{settings}: this has no meaning without virtual time: set 'virtual.sample_seconds=0.05', the seconds that a"
        " record takes a client of speed 1, or drop it",
    )


def time_of_virtual_clients(config: RunConfig) -> Iterator[Contradiction]:
    """Sites have a real time of their own."""
    if config.virtual.on and config.federation.sites:
        yield Contradiction(
            ("virtual.sample_seconds", "federation.sites"),
            f"virtual.sample_seconds = {config.virtual.sample_seconds:g} with federation.sites: sites take the time"
            " that they take; drop it, or simulate with virtual clients (`fedlora simulate`)",
        )


def time_tells_of_cohorts(config: RunConfig) -> Iterator[Contradiction]:
    """How long a round took depends on who was drawn, which central DP keeps to itself."""
    if config.virtual.on and config.privacy.name == "central":
        yield Contradiction(
            ("virtual.sample_seconds", "privacy.name"),
            f"virtual.sample_seconds = {config.virtual.sample_seconds:g} with privacy=central: what a round takes"
            " depends on who was drawn, and is told, while the run's ε holds for draws that nobody knows; use"
            " privacy=dp or none, or drop it",
        )


def parts_of_time(config: RunConfig) -> Iterator[Contradiction]:
    """Settings that another one would have to go with."""
    virtual = config.virtual
    lonely = {
        "stay": ("availability", "availability=0.5", virtual.availability == 1),
        "period": ("trace", "trace=FILE", virtual.trace is None),
        "bandwidth_spread": ("up", "up=10", virtual.up is None and virtual.down is None),
    }
    for name in _changed(virtual, *lonely):
        decider, example, alone = lonely[name]
        if alone and virtual.on and virtual.trace is None:
            yield Contradiction(
                (f"virtual.{name}", f"virtual.{decider}"),
                f"virtual.{name} = {getattr(virtual, name):g} has no meaning by itself: set 'virtual.{example}' too, or"
                " drop it",
            )


def trace_alone(config: RunConfig) -> Iterator[Contradiction]:
    """A trace says what would else be drawn."""
    virtual = config.virtual
    if virtual.trace is None or not (found := _changed(virtual, *DRAWN)):
        return
    settings = ", ".join(f"virtual.{name}" for name in found)
    yield Contradiction(
        ("virtual.trace", *(f"virtual.{name}" for name in found)),
        f"virtual.trace = {virtual.trace} says what {settings} would have drawn: drop one or the other",
    )


def trace_is_right(config: RunConfig) -> Iterator[Contradiction]:
    """The file is read now: all that is wrong in it is told with all else."""
    virtual = config.virtual
    if virtual.trace is None or not virtual.on or config.federation.sites:
        return
    try:
        read_trace(virtual.trace, config.federation.clients, virtual.period)
    except ConfigError as error:
        for problem in error.problems:
            yield Contradiction(("virtual.trace",), problem)


VIRTUAL: tuple[Rule, ...] = (
    time_is_on,
    time_of_virtual_clients,
    time_tells_of_cohorts,
    parts_of_time,
    trace_alone,
    trace_is_right,
)
