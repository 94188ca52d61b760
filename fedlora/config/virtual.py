"""Virtual time: how fast simulated clients are, how they are connected, and when they are there."""

from pathlib import Path

from pydantic import Field

from fedlora.config.section import Section


class VirtualConfig(Section):
    """The time of a simulation: what its clients would take. On if `sample_seconds` is set."""

    sample_seconds: float | None = Field(
        None,
        gt=0,
        description="seconds that a client of speed 1 takes to train on one record (a step: `train.batch` times that);"
        " null: no virtual time, clients are neither slow nor fast",
    )
    speed_spread: float = Field(
        0.0, ge=0, description="σ of the lognormal distribution of the clients' speeds, whose median is 1; 0: all alike"
    )
    up: float | None = Field(
        None, gt=0, description="Mbit/s from a client to the server, the median; null: sending takes no time"
    )
    down: float | None = Field(
        None, gt=0, description="Mbit/s from the server to a client, the median; null: sending takes no time"
    )
    bandwidth_spread: float = Field(
        0.0, ge=0, description="σ of the lognormal distribution of bandwidths over clients; up and down go together"
    )
    latency: float = Field(0.0, ge=0, description="seconds that a message takes on top, each way")
    availability: float = Field(
        1.0, gt=0, le=1, description="part of the time that a client is there; it comes and goes by chance"
    )
    stay: float = Field(
        600.0, gt=0, description="availability < 1: mean of the seconds that a client stays (exponential)"
    )
    dropout: float = Field(
        0.0, ge=0, le=1, description="probability that a client drops out of a work, at any moment of it"
    )
    trace: Path | None = Field(
        None,
        description="CSV or JSONL file that says speed, up, down and available of each client, in the order of their"
        " numbers, instead of the distributions",
    )
    period: float | None = Field(
        None, gt=0, description="trace: seconds after which the intervals of `available` begin anew; null: never"
    )

    @property
    def on(self) -> bool:
        """Whether there is a virtual time."""
        return self.sample_seconds is not None
