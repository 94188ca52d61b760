"""The part of the configuration about clients and rounds."""

from typing import Literal

from pydantic import Field

from fedlora.config.section import Name, Section


class FederationConfig(Section):
    """Who takes part, and what counts as a round."""

    clients: int = Field(10, ge=1, description="clients in all")
    sites: tuple[Name, ...] = Field(
        (), description="names of the sites, in the order of their client numbers; empty: virtual clients"
    )
    cohort: int = Field(5, ge=1, description="clients asked in a round")
    rounds: int = Field(12, ge=1, description="rounds in all")
    weighting: Literal["samples", "uniform"] = Field("samples", description="what a client's update counts with")
    min_reports: int = Field(1, ge=1, description="admitted updates without which a round fails")
    max_samples: int = Field(10_000_000, ge=1, description="a client that claims more training rows is rejected")
    max_update_norm: float | None = Field(
        None,
        gt=0,
        description="bound on ‖s·(B_k·A_k − B·A)‖ over all modules, beyond which an update is rejected",
    )
    timeout: float | None = Field(
        None, gt=0, description="seconds a round may take (with `virtual` set: virtual ones); null: no limit"
    )
    below_quorum: Literal["fail", "retry"] = Field(
        "fail", description="what a round with fewer reports than it needs does: fail the run, or ask its cohort again"
    )
    retries: int = Field(5, ge=1, description="below_quorum=retry: times that one round is tried again")
    retry_wait: float = Field(30.0, ge=0, description="below_quorum=retry: seconds before it is")
    over_selection: float = Field(
        1.0,
        ge=1,
        description="sites, virtual time: times the cohort that is asked; the round ends when as many as the cohort"
        " have reported. Not under DP: who is not counted has spent his ε for nothing",
    )
    release_few: bool = Field(
        False,
        description="sites, without DP: release a round with fewer than three reports too; of two sites each can"
        " subtract its own update and has the other's",
    )
    absence: float = Field(
        120.0,
        ge=0,
        description="sites, virtual time: seconds that one may be away before it is lost to the round that asked it",
    )
    buffered: bool = Field(
        False,
        description="sites, virtual time: do not wait for the slowest; a round is over after `buffer` updates, and an"
        " update that was begun in an earlier round counts too (FedBuff). `cohort` is then how many work at once",
    )
    buffer: int | None = Field(
        None,
        ge=1,
        description="buffered: updates with which a round is over; null: half of the cohort, and no fewer than a round"
        " needs to be released",
    )
    staleness: float = Field(
        0.5,
        ge=0,
        description="buffered: a in (1 + τ)^(−a), the part of a change that counts if it was begun τ rounds ago",
    )
    max_staleness: int = Field(
        10, ge=0, description="buffered: rounds that an update may be late; a later one is not waited for, nor counted"
    )
