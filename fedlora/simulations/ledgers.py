"""The privacy ledgers of a run's virtual clients: where they are, when they are closed, what they say was spent.

A site's ledger is its owner's: nothing here makes or reads one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedlora.client.ledgers import simulate_in
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.privacy.account import ROSTER, Account, accounted
from fedlora.privacy.ledger import Ledger, open_ledger
from fedlora.server.records import Outcome, RoundRecord

FOLDER = "ledgers"


def with_ledgers(config: RunConfig, run_folder: Path) -> RunConfig:
    """`config` with a place for the ledgers under local DP, the given one or else in the run's folder: may be used.

    Unchanged for a run of sites.
    """
    if not config.privacy.local or config.federation.sites:
        return config
    folder = (config.privacy.ledgers or run_folder / FOLDER).resolve()
    simulate_in(folder)
    return config.model_copy(update={"privacy": config.privacy.model_copy(update={"ledgers": folder})})


def refuse_more_rounds(config: RunConfig) -> None:
    """Raises ConfigError for a run under DP: its whole schedule was announced, and its noise made for it."""
    if config.privacy.name != "none":
        rounds = config.federation.rounds
        problem = (
            f"federation.rounds: the noise of this run was made for {rounds} rounds, and so many were announced to the"
            " clients; more would spend more. Start a new run"
        )
        raise ConfigError([problem])


def close_ledgers(config: RunConfig, run: str) -> None:
    """Gives back, in every virtual client's ledger, what `run` had reserved and not begun."""
    for _, ledger in _ledgers(config):
        if run in ledger.runs and not ledger.runs[run].closed:
            ledger.close(run)


def account_of(config: RunConfig, run: str, rounds: Sequence[RoundRecord]) -> Account:
    """What `run` promised, and what its clients have spent of it: by their ledgers; of sites, by the roster."""
    if config.federation.sites and config.privacy.local:
        return accounted(config, rounds_shown(rounds), ROSTER)
    return accounted(config, rounds_spent(config, run))


def rounds_shown(rounds: Sequence[RoundRecord]) -> dict[int, int]:
    """In how many rounds each site may have spent, for all that the roster shows: in those that it did not decline.

    One that failed or did not answer may have spent, and may not.
    """
    asked = (row for record in rounds if record.round for row in record.roster)
    return dict(Counter(row.client for row in asked if row.outcome is not Outcome.DECLINED))


def rounds_spent(config: RunConfig, run: str) -> dict[int, int]:
    """How many rounds of `run` count as spent in each client's ledger; clients that were never asked are left out."""
    return {client: ledger.runs[run].participated() for client, ledger in _ledgers(config) if run in ledger.runs}


def _ledgers(config: RunConfig) -> Iterator[tuple[int, Ledger]]:
    if not config.privacy.local or config.privacy.ledgers is None or config.federation.sites:
        return
    for folder in sorted(config.privacy.ledgers.glob("client-*")):
        with open_ledger(folder) as ledger:
            yield int(folder.name.removeprefix("client-")), ledger
