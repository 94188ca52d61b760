"""Whether what the user said names things that exist: groups, their options, keys.

A wrong name with one near right one is a mistake, and the rest is checked as if the right one had been said, so
that what depends on it is not judged against a default that nobody meant.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedlora.config.groups import Groups
from fedlora.config.keys import Key, did_you_mean, keys, known, nearest, sections
from fedlora.config.said import GROUPS, Entry, Problem
from fedlora.config.strategy import option_keys, unknown_option
from fedlora.strategies.base import Strategy

Verdict = tuple[list[Entry], list[Problem]]
Settled = tuple[Entry | None, Problem | None]


def settle_groups(entries: Sequence[Entry], groups: Groups) -> Verdict:
    """Entries with the names of groups and options right, and a problem for each wrong one."""
    said = {entry.key for entry in entries}
    return _each(entries, lambda entry: _settle_group(entry, groups, said))


def settle_keys(entries: Sequence[Entry], method: type[Strategy]) -> Verdict:
    """Value entries with right keys, given the chosen method, and a problem for each wrong one."""
    table = {**keys(), **option_keys(method)}
    said = {entry.key for entry in entries}
    return _each(entries, lambda entry: _settle_key(entry, table, method, said))


def choices(entries: Sequence[Entry]) -> dict[str, str | None]:
    """Each group's option: the last one said."""
    return {entry.key: entry.value for entry in entries if entry.choice}


def without_overruled(entries: Sequence[Entry]) -> list[Entry]:
    """Entries of a file count no more for a group that the command line chooses an option of."""
    chosen = {entry.key for entry in entries if entry.choice and entry.command_line}
    return [entry for entry in entries if entry.command_line or _group_of(entry) not in chosen]


def _each(entries: Sequence[Entry], settle: Callable[[Entry], Settled]) -> Verdict:
    settled = [settle(entry) for entry in entries]
    problems = [replace(problem, key=good.key if good else "") for good, problem in settled if problem]
    return [good for good, _ in settled if good], problems


def _group_of(entry: Entry) -> str:
    if entry.choice:
        return entry.key
    inside = [group for group in GROUPS if entry.key.startswith(f"{group.replace('/', '.')}.")]
    return max(inside, key=len, default="")


def _settle_group(entry: Entry, groups: Groups, said: set[str]) -> Settled:
    if entry.choice:
        return _settle_option(entry, groups)
    group = entry.key.replace(".", "/")
    if group in GROUPS and not isinstance(entry.value, list | dict):
        meant = _settle_option(replace(entry, key=group, choice=True), groups)[0]
        return meant, Problem(entry.origin, f"{entry.key} is a group: choose its option with '{group}={entry.value}'")
    if "/" in entry.key or ("." not in entry.key and not _is_top_level(entry.key)):
        return _unknown_group(entry, groups, said)
    return entry, None


def _is_top_level(key: str) -> bool:
    return key in keys() or key in sections() or key in GROUPS


def _unknown_group(entry: Entry, groups: Groups, said: set[str]) -> Settled:
    near = nearest(entry.key, [*GROUPS, *keys()])
    meant = _renamed(entry, near, said)
    if meant and meant.choice:
        meant = _settle_option(meant, groups)[0]
    kind = "group" if "/" in entry.key else "group or key"
    names = f" Groups: {', '.join(GROUPS)}" if not near else ""
    return meant, Problem(entry.origin, f"unknown {kind} {entry.key!r}{did_you_mean(near)}{names}")


def _renamed(entry: Entry, near: Sequence[str], said: set[str]) -> Entry | None:
    """The entry under the one near name, unless that was said too."""
    if len(near) != 1 or near[0] in said:
        return None
    return replace(entry, key=near[0], choice=near[0] in GROUPS)


def _settle_option(entry: Entry, groups: Groups) -> Settled:
    if entry.value is None and entry.key == "experiment":
        return entry, None
    options = groups.options(entry.key)
    word = "null" if entry.value is None else str(entry.value)
    if word in options:
        return replace(entry, value=word), None
    near = [name for name in nearest(word, options) if name in options]
    meant = replace(entry, value=near[0]) if len(near) == 1 else None
    text = f"group {entry.key} has no option {word!r}{did_you_mean(near)} Options: {', '.join(options)}"
    return meant, Problem(entry.origin, text)


def _settle_key(entry: Entry, table: Mapping[str, Key], method: type[Strategy], said: set[str]) -> Settled:
    if known(entry.key, table):
        return entry, None
    if entry.key in sections():
        example = next(name for name in table if name.startswith(f"{entry.key}."))
        return None, Problem(entry.origin, f"{entry.key} holds several keys: set them one by one, e.g. '{example}=…'")
    near = nearest(entry.key, list(table))
    meant = _renamed(entry, near, said)
    if entry.key.startswith("strategy."):
        return meant, Problem(entry.origin, unknown_option(entry.key, method))
    return meant, Problem(entry.origin, f"unknown key {entry.key!r}{did_you_mean(near)}")
