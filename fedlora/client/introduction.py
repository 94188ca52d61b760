"""What a client tells its server of itself when it connects, as far as its owner lets it (the policy's `tells`).

Of the policy nothing is told that the sentences of a refusal would not tell too: no path, column, label, digest or
ledger. Nobody checks it; the server shows it and relies on none of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fedlora
from fedlora.client.device import device_words
from fedlora.client.policy import Policy
from fedlora.client.policy_check import names_in_short
from fedlora.link import limits

_PROTECTION = {"none": "none", "central": "a server that promises to add noise", "dp": "local DP"}


@dataclass(frozen=True)
class Introduction:
    """What is told. data: name → rounded rows, None: not told. device: "" if not told. policy: a line each."""

    version: str
    data: Mapping[str, int | None]
    device: str
    policy: tuple[str, ...]

    def shown(self) -> dict[str, Any]:
        """For the owner, as JSON values."""
        sizes = {name: "its size is not told" if rows is None else f"{rows} rows" for name, rows in self.data.items()}
        return {
            "version": self.version,
            "data": [f"{name} ({size})" for name, size in sizes.items()],
            "policy": list(self.policy),
            "device": self.device or None,
        }


def introduction(policy: Policy, device: Callable[[], str] = device_words) -> Introduction:
    """What `policy` lets the client tell. device: asked only if the owner lets its answer be told."""
    return Introduction(
        version=fedlora.__version__,
        data={name: rule.nominal_size for name, rule in policy.data.items()} if "data" in policy.tells else {},
        device=limits.shown(device(), limits.DEVICE) if "device" in policy.tells else "",
        policy=_lines(policy) if "policy" in policy.tells else (),
    )


def _lines(policy: Policy) -> tuple[str, ...]:
    """What is allowed, a line each, within what a server keeps of them."""
    told = {
        "models": names_in_short(policy.models) or "none",
        "tasks": _named(policy.tasks),
        "strategies": _named(policy.strategies),
        "least protection": _PROTECTION[policy.privacy.require],
        "ε of one run": _spent(policy),
        "size of a run": _size(policy),
        "begins work": names_in_short(policy.hours) or "at any time",
        "approval": "none needed" if policy.approval == "automatic" else "each run waits once for the site's owner",
    }
    lines = [limits.shown(f"{topic}: {text}", limits.POLICY_LINE) for topic, text in told.items()]
    return tuple(lines[: limits.POLICY_LINES])


def _named(names: tuple[str, ...] | None) -> str:
    return "any" if names is None else names_in_short(names) or "none"


def _spent(policy: Policy) -> str:
    most = policy.privacy.epsilon_run
    ceiling = "no ceiling in the policy" if most is None else f"at most {most:g}"
    return f"{ceiling}, at δ of at most {policy.privacy.delta:g}"


def _size(policy: Policy) -> str:
    parts = [("rounds", policy.rounds_max), ("steps a round", policy.steps_max), ("records a step", policy.batch_max)]
    return ", ".join(f"at most {most} {what}" for what, most in parts if most is not None) or "any"
