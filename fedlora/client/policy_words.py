"""A policy as its owner would say it, what is odd about it, and what it names that is not there."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedlora.client.policy import DataRule, ModelRule, Policy
from fedlora.config.keys import did_you_mean, nearest
from fedlora.words import number

_PROTECTION = {
    "none": "none: updates may leave as they are, and can reveal rows",
    "central": "a server that promises to add noise, or more",
    "dp": "local DP: only what this site has noised itself leaves",
}
_ALL = "all"


def in_words(policy: Policy, joined: str | None) -> list[tuple[str, str]]:
    """(topic, what is allowed), in the order of the file. joined: the address of the server that was joined."""
    own = f"only the one that was joined ({joined or 'none yet'})"
    return [
        ("servers", ", ".join(policy.servers) or own),
        *((f"model {name}", _model(rule)) for name, rule in policy.models.items()),
        *((f"data {name}", _data(rule, policy)) for name, rule in policy.data.items()),
        ("tasks", _listed(policy.tasks)),
        ("strategies", _listed(policy.strategies)),
        ("least protection", _PROTECTION[policy.privacy.require]),
        ("spent by one run", _spent(policy)),
        ("one unit", _unit(policy.privacy.unit)),
        ("size of a run", _size(policy)),
        ("hours", ", ".join(policy.hours) or "always"),
        ("machine", _machine(policy)),
        ("figures that leave", ", ".join(policy.metrics) or "none without local DP; with it, noised ones"),
        ("told to the server", ", ".join(policy.tells) or "none of data, policy and device"),
        ("approval", "none needed" if policy.approval == "automatic" else "once for each run, by the owner"),
    ]


def notes(policy: Policy, path: Path) -> list[str]:
    """What is allowed to stand in the policy, whose file is `path`, and is probably not meant."""
    return list(_notes(policy, path))


def missing(policy: Policy, folder: Path) -> list[str]:
    """A sentence for each local file or folder that the policy names and that is not there. folder: the policy's."""
    places = [
        (f"{section}.{name}.path", rule.place(folder))
        for section, rules in (("models", policy.models), ("data", policy.data))
        for name, rule in rules.items()
    ]
    return [
        f"{key} = {place}: there is no such file or folder, or it cannot be read; correct the path"
        for key, place in places
        if place is not None and not os.access(place, os.R_OK)
    ]


def _notes(policy: Policy, path: Path) -> Iterator[str]:
    for section, rules in (("models", policy.models), ("data", policy.data)):
        if not rules:
            yield f"{section} names nothing: every run is declined"
    for name, rule in policy.data.items():
        size = rule.nominal_size
        if size is not None and size != float(f"{size:.1e}"):
            yield f"data.{name}.nominal_size = {size} looks exact, and it is public: round it, e.g. to {_round(size)}"
    if policy.privacy.require == "none":
        yield "privacy.require = none: what leaves can reveal rows, word for word"
    yield from _unknown_strategies(policy.strategies or ())
    if stat.S_IMODE(path.stat().st_mode) & 0o022:
        yield f"{path} can be written by others, who could allow what you do not: chmod 600 {path}"


def _unknown_strategies(names: Sequence[str]) -> Iterator[str]:
    from fedlora.strategies.registry import strategies

    known = strategies()
    for name in names:
        if name not in known:
            hint = did_you_mean(nearest(name, list(known))).rstrip(".")
            yield f"strategies: {name!r} is no method that is installed here{hint}"


def _round(size: int) -> int:
    return int(float(f"{size:.1e}"))


def _listed(names: Sequence[str] | None) -> str:
    if names is None:
        return _ALL
    return ", ".join(names) or "none: every run is declined"


def _source(rule: ModelRule | DataRule) -> str:
    where = "" if rule.path is None else f" {rule.path}"
    return f"{rule.source}{where}{'' if rule.revision is None else f'@{rule.revision}'}"


def _model(rule: ModelRule) -> str:
    digest = "" if rule.sha256 is None else f", only with the digest {rule.sha256[:12]}…"
    return f"{_source(rule)}{digest}"


def _data(rule: DataRule, policy: Policy) -> str:
    columns = ", ".join(f"{role} from {column!r}" for role, column in rule.columns.mapped().items())
    units = (policy.privacy.unit,) if rule.units is None else rule.units
    return "; ".join(
        [
            f"{_source(rule)}: {columns}",
            f"spent from the ledger {rule.budget!r}",
            f"local DP by {', '.join(units)}" if units else "never under local DP",
            f"tasks: {', '.join(rule.tasks) if rule.tasks is not None else 'all that the columns suffice for'}",
            f"said to have about {number(rule.nominal_size)} rows" if rule.nominal_size else "its size is not told",
        ]
    )


def _spent(policy: Policy) -> str:
    most = policy.privacy.epsilon_run
    epsilon = "as much ε as the ledger has" if most is None else f"at most ε = {number(most)}"
    return f"{epsilon}, at δ of at most {policy.privacy.delta:g}"


def _unit(unit: str) -> str:
    return "a row; a person with several is not protected as one" if unit == "record" else f"all rows with one {unit!r}"


def _size(policy: Policy) -> str:
    parts = [("rounds", policy.rounds_max), ("steps a round", policy.steps_max), ("records a step", policy.batch_max)]
    return ", ".join(f"at most {most:,} {what}" for what, most in parts if most is not None) or "any"


def _machine(policy: Policy) -> str:
    limits = policy.limits
    parts = [
        ("at most {:,} threads", limits.threads),
        ("{:,.0f} MB of memory free", limits.memory_mb_free_least),
        ("{:,.0f} MB of disk free", limits.disk_mb_free_least),
        ("others use at most {:g} % of the processors", limits.cpu_busy_most),
    ]
    return ", ".join(text.format(value) for text, value in parts if value is not None) or "no limits"
