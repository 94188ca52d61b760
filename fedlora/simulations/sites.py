"""What is different where a run's clients are sites: data owners' daemons, with files and ledgers of their own."""

from flwr.serverapp import Grid

from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.wire import Common

ELSEWHERE = (
    "privacy=dp does not run on Flower's own runtime: its nodes keep no privacy ledger for the data's owner; use"
    " `fedlora simulate`"
)
NOT_SIMULATED = (
    "federation.sites names data owners, and virtual clients do not stand in for them: start the run on a server that"
    " they connect to, or drop federation.sites"
)

NOT_BUFFERED = (
    "federation.buffered = true has no meaning for virtual clients without virtual time, which are neither slow nor"
    " fast: set 'virtual.sample_seconds=0.05', the seconds that a record takes a client of speed 1, start the run on a"
    " server that sites connect to, or drop it"
)
NOT_TIMED = (
    "virtual.sample_seconds is for fedlora's own engines: on Flower's runtime clients take the time that they take; use"
    " `fedlora simulate`, or drop it"
)


def refuse(config: RunConfig, grid: Grid | None) -> None:
    """Raises ConfigError for sites without a grid that reaches them, local DP on one whose nodes keep no ledgers,
    virtual time on a grid that was there before, or buffered rounds of virtual clients without virtual time."""
    if grid is None and config.federation.sites:
        raise ConfigError([NOT_SIMULATED])
    if grid is not None and config.virtual.on:
        raise ConfigError([NOT_TIMED])
    if config.federation.buffered and not config.federation.sites and not config.virtual.on:
        raise ConfigError([NOT_BUFFERED])
    if grid is not None and config.privacy.local and not (config.federation.sites and keeps_ledgers(grid)):
        raise ConfigError([ELSEWHERE])


def keeps_ledgers(grid: Grid) -> bool:
    """Whether the owners behind `grid` keep privacy ledgers: it says so in an attribute `keeps_ledgers`."""
    return getattr(grid, "keeps_ledgers", False) is True


def common_to(worker: Worker, *, fixed: bool) -> Common:
    """What clients compare with their own. fixed: whether tensors were made of the base model's weights.

    Virtual clients have the server's files, and nothing is to be compared.

    Raises ConfigError where the server reads a second text that the configuration does not name: a site would not.
    """
    if not worker.config.federation.sites:
        return Common(base_digest=worker.base_digest if fixed else "")
    data = worker.config.data
    if data.text_pair is None and "text_pair" in worker.splits.train.column_names:
        problem = (
            f"data.text_pair: the data {data.name!r} have a column text_pair, which the server would read and the sites"
            " would not: set data.text_pair=text_pair, or remove the column"
        )
        raise ConfigError([problem])
    return Common(worker.splits.labels, worker.tokenizer_digest, worker.base_digest)
