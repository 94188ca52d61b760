"""The privacy ledgers of a run's virtual clients: where they are, when they are closed, what they say was spent."""

from collections.abc import Iterator
from pathlib import Path

from fedlora.client.ledgers import simulate_in
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.privacy.ledger import Ledger, open_ledger

FOLDER = "ledgers"


def with_ledgers(config: RunConfig, run_folder: Path) -> RunConfig:
    """`config` with a place for the ledgers under local DP, the given one or else in the run's folder: may be used."""
    if not config.privacy.local:
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
    """Gives back, in every client's ledger, what `run` had reserved and not begun."""
    for _, ledger in _ledgers(config):
        if run in ledger.runs and not ledger.runs[run].closed:
            ledger.close(run)


def rounds_spent(config: RunConfig, run: str) -> dict[int, int]:
    """How many rounds of `run` count as spent in each client's ledger; clients that were never asked are left out."""
    return {client: ledger.runs[run].participated() for client, ledger in _ledgers(config) if run in ledger.runs}


def _ledgers(config: RunConfig) -> Iterator[tuple[int, Ledger]]:
    if not config.privacy.local or config.privacy.ledgers is None:
        return
    for folder in sorted(config.privacy.ledgers.glob("client-*")):
        with open_ledger(folder) as ledger:
            yield int(folder.name.removeprefix("client-")), ledger
