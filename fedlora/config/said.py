"""What the user said: overrides and a file, taken apart into single entries that know where they were said."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from fedlora.config.keys import sections

# The groups of `conf/`, in the order in which Hydra applies them. `strategy` comes from the registry of methods.
GROUPS = ("model", "task", "data", "data/partition", "eval", "privacy", "engine", "strategy", "experiment")


@dataclass(frozen=True)
class Entry:
    """One setting: a group's option (`choice`; key is the group) or a value (key is dotted).

    origin: where it was said, e.g. `override 'train.lr=1'` or `mine.yaml:4`. command_line: whether that was there.
    """

    origin: str
    key: str
    value: Any
    choice: bool = False
    command_line: bool = False


@dataclass(frozen=True)
class Problem:
    """One mistake: where it was said, a sentence about it, and the key that is (or was probably) meant."""

    origin: str
    text: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


@dataclass(frozen=True)
class Said:
    """All entries, the file's before the command line's, and what could not be read at all."""

    entries: Sequence[Entry] = ()
    problems: Sequence[Problem] = ()

    def __add__(self, other: "Said") -> "Said":
        return Said([*self.entries, *other.entries], [*self.problems, *other.problems])


def from_overrides(overrides: Sequence[str]) -> Said:
    """Command-line overrides in Hydra's grammar; each that cannot be used is a problem of its own."""
    return sum((_from_override(text) for text in overrides), Said())


def from_mapping(mapping: Mapping[str, Any], origin: Callable[[str], str]) -> Said:
    """A nested mapping of settings; `origin` names the place of a key."""
    return Said([_entry(origin(key), key, value, False) for key, value in _leaves("", mapping)])


def from_file(path: Path) -> Said:
    """A user's YAML file, with the line of each key."""
    try:
        mapping, lines, repeated = _read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        return Said(problems=[Problem(str(path), f"the file cannot be read: {error}")])
    except yaml.YAMLError as error:
        return Said(problems=[Problem(str(path), f"this is not YAML: {' '.join(str(error).split())}")])
    if not isinstance(mapping, Mapping):
        return Said(problems=[Problem(str(path), "a configuration is a mapping of keys to values, e.g. 'seed: 1'")])
    twice = [Problem(f"{path}:{line}", f"the key {key!r} is given twice: keep one") for key, line in repeated]
    return from_mapping(mapping, lambda key: f"{path}:{lines.get(key, 1)}") + Said(problems=twice)


def _from_override(text: str) -> Said:
    origin = f"override {text!r}"
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        return Said(problems=[Problem(origin, _syntax(text, error))])
    refusal = _refusal(parsed)
    if refusal:
        return Said(problems=[Problem(origin, refusal)])
    return Said([_entry(origin, key, value, True) for key, value in _leaves_of(parsed.key_or_group, parsed.value())])


def _syntax(text: str, error: HydraException) -> str:
    if "=" not in text:
        return "this is no override: write KEY=VALUE, e.g. federation.rounds=20"
    return f"this cannot be read ({' '.join(str(error).split())}); put a value with special characters in quotes"


def _refusal(override: Override) -> str:
    """Why an override that Hydra could read is not for us; empty if it is."""
    key = override.key_or_group
    if override.type is OverrideType.DEL:
        return f"keys cannot be deleted; set '{key}=null' if the key may be null"
    if override.type is not OverrideType.CHANGE:
        return f"no keys can be added to a checked configuration; to set a key write '{key}=…' without '+'"
    if override.is_hydra_override():
        return "Hydra only composes the configuration here; the run's folder is set with 'output' and 'store'"
    if override.package is not None:
        return f"groups have fixed places here; write '{key}=…' without '@'"
    if override.is_sweep_override():
        return "several values are a sweep: add --multirun (or put the value in quotes, if the comma belongs to it)"
    return ""


def _leaves_of(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and _dotted(key) in sections():
        yield from _leaves(f"{_dotted(key)}.", value)
    else:
        yield key, value


def _leaves(prefix: str, mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        yield from _leaves_of(f"{prefix}{name}", value)


def _entry(origin: str, key: str, value: Any, command_line: bool) -> Entry:
    """A scalar for a group is a choice; so is the method's name, which decides what its other keys may be."""
    if key == "strategy.name":
        key = "strategy"
    choice = key in GROUPS and not isinstance(value, list | dict)
    return Entry(origin, key, value, choice, command_line)


def _dotted(key: str) -> str:
    return key.replace("/", ".") if key in GROUPS else key


class _Loader(yaml.SafeLoader):
    """YAML as Hydra reads it: dates stay text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own protocol
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# PyYAML follows YAML 1.1, where 1e-3 is text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> tuple[Any, dict[str, int], list[tuple[str, int]]]:
    """The file's content, the line of each dotted key, and keys that are given twice, with their lines."""
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        repeated = list(_number_lines(node, "", lines))
        return ({} if node is None else loader.construct_document(node)), lines, repeated
    finally:
        loader.dispose()


def _number_lines(node: yaml.Node | None, prefix: str, lines: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Fills `lines`; gives the repeated keys."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        key, line = f"{prefix}{name.value}", name.start_mark.line + 1
        if key in lines:
            yield key, line
        lines[key] = line
        yield from _number_lines(value, f"{_dotted(key)}.", lines)
