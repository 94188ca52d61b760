"""What several runs on the same data spend together: trying settings on private rows is spending, too."""

from collections.abc import Iterable

from fedlora.privacy.account import Account
from fedlora.privacy.accounting import Release, epsilon


def spent_together(accounts: Iterable[Account]) -> str | None:
    """A sentence on the ε of all `accounts` composed, at the largest δ of theirs; None if none has a mechanism.

    As if every client had taken part in all rounds that each run allowed it: an upper bound, by PLD.
    """
    found = list(accounts)
    figures = [account.promise["figures"] for account in found if account.promise["figures"] is not None]
    if not figures:
        return None
    open_ones = sum(not account.promise["holds"] for account in found)
    if open_ones:
        return f"together these {len(found)} runs promise nothing: {open_ones} of them carry no guarantee"
    releases = [Release(*release) for each in figures for release in each["releases"]]
    delta = max(each["delta"] for each in figures)
    total = epsilon(releases, delta)
    return (
        f"together these {len(found)} runs spend up to simulated ε = {total:.3g} at δ = {delta:g} if they had the same"
        " rows: what was chosen by comparing them costs that much"
    )
