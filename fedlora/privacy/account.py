"""privacy.json: what a run promised and what it has spent, beside everything that it hands out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import StoreError
from fedlora.privacy.schedule import run_epsilon
from fedlora.privacy.statement import statement
from fedlora.server.durable import explained, replace_synced

FILE = "privacy.json"
LEDGERS = "the clients' own ledgers"
ROSTER = "the server's roster: rounds in which a site may have spent; its owner's ledger alone says what it did spend"
DISJOINT = (
    "each person's rows are at one site; a person with rows at k sites is covered by the sum of those sites' epsilons,"
    " at most by that of the k largest"
)


@dataclass(frozen=True)
class Account:
    """What is in privacy.json.

    promise: `Statement.plain()`. sites: client → {"rounds", "epsilon"} as its ledger or, where that is its owner's, the
    roster counts them; empty if clients keep no ledgers. basis: which of the two.
    """

    promise: Mapping[str, Any]
    sites: Mapping[int, Mapping[str, float]]
    basis: str = LEDGERS

    @property
    def largest(self) -> float | None:
        """The largest ε of a site; None without sites."""
        return max((site["epsilon"] for site in self.sites.values()), default=None)

    def to_json(self) -> str:
        """The file's content."""
        found = {"largest_epsilon": self.largest, "sites": self.sites, "basis": self.basis, "assumption": DISJOINT}
        spent = found if self.sites else None
        return json.dumps({"promise": self.promise, "spent": spent}, indent=2, ensure_ascii=False) + "\n"

    def sentence(self) -> str:
        """One line for a summary: what was spent where that is known, else what was promised."""
        promise, figures = self.promise, self.promise["figures"]
        if not promise["holds"] or figures is None or self.largest is None:
            return str(promise["headline"])
        what = "simulated ε = {:.3g} at δ = {:g}, the most that a client spent (promised: {:.3g}); {}"
        if self.basis == ROSTER:
            what = "ε = {:.3g} at δ = {:g}, the most that a site may have spent by the roster (announced: {:.3g}); {}"
        return what.format(self.largest, figures["delta"], figures["epsilon"], figures["unit"])


def promised(config: RunConfig) -> Account:
    """What the configuration alone says: nothing is known of what was spent."""
    return Account(statement(config, make_strategy(config.strategy)).plain(), {})


def accounted(config: RunConfig, rounds: Mapping[int, int], basis: str = LEDGERS) -> Account:
    """With what clients have spent. rounds: client → rounds that its ledger counts, or that `basis` does."""
    epsilons = {count: run_epsilon(config, count) for count in set(rounds.values())}
    sites = {client: {"rounds": count, "epsilon": epsilons[count]} for client, count in sorted(rounds.items())}
    return Account(promised(config).promise, sites, basis)


def write_account(folder: Path, account: Account) -> None:
    """Writes the account into `folder`. Raises StoreError if the disk does not take it."""
    with explained("write", folder / FILE):
        replace_synced(folder / FILE, account.to_json().encode())


def read_account(folder: Path) -> Account | None:
    """The account in `folder`; None if there is none. Raises StoreError if it cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        spent = found["spent"] or {}
        sites = {int(client): site for client, site in spent.get("sites", {}).items()}
        return Account(found["promise"], sites, spent.get("basis", LEDGERS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is no account of a run's privacy ({error}): it was edited; export the run again"
        ) from error
