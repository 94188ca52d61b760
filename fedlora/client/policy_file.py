"""`policy.yaml` read and checked: plain data, never code, and all mistakes at once, each with its line."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedlora.client.policy import NAME, DataRule, Policy, PrivacyRule, policy_keys
from fedlora.config.keys import did_you_mean, nearest
from fedlora.config.sentences import sentence
from fedlora.errors import PolicyError
from fedlora.server.durable import explained

LARGEST = 1 << 20
"""Bytes that a policy's file may have at most."""

_NAMED = ("models", "data")
_DEEPEST = 20  # mappings and lists inside each other; a policy needs four
_QUOTE = "; put it in quotes: without them YAML reads a yes or no, a date or nothing at all as something else than text"

Path_ = tuple[str, ...]
Lines = Mapping[Path_, int]
Part = TypeVar("Part", bound=BaseModel)


def load_policy(path: Path) -> Policy:
    """The policy in the file `path`, checked. Whether the files that it names exist is not.

    Raises PolicyError with every mistake, StoreError if the file cannot be read.
    """
    text = _read(path)
    try:
        node, tree = _parse(path, text)
    except yaml.YAMLError as error:
        raise PolicyError(path, [_yaml_problem(error)]) from error
    if not isinstance(tree, dict):
        raise PolicyError(path, [f"it must hold keys with values, like 'hours: []', not {type(tree).__name__}"])
    return _checked(path, tree, dict(_lines(node)))


def _read(path: Path) -> str:
    if not path.is_file():
        raise PolicyError(path, ["there is no such file: `fedlora client init` makes a home folder with one"])
    with explained("read", path), path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise PolicyError(path, [f"it has more than {LARGEST:,} bytes: that is no policy"])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError(path, [f"byte {error.start} is no UTF-8: save the file as UTF-8"]) from error


def _parse(path: Path, text: str) -> tuple[yaml.Node | None, Any]:
    """The file's nodes, which know their lines, and its values. What could hide something from a reader is refused."""
    problems = list(_hidden(text))
    if problems:
        raise PolicyError(path, problems)
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    problems = list(_wrong_keys(node))
    if problems:
        raise PolicyError(path, problems)
    tree = yaml.safe_load(text)
    return node, {} if tree is None else tree


def _hidden(text: str) -> Iterator[str]:
    """References, which make one place say what stands in another, and nesting beyond all need."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            yield f"line {line}: references (& and *) have no place in a policy: write the values out"
        opens = isinstance(
            token,
            yaml.BlockMappingStartToken
            | yaml.BlockSequenceStartToken
            | yaml.FlowMappingStartToken
            | yaml.FlowSequenceStartToken,
        )
        closes = isinstance(token, yaml.BlockEndToken | yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken)
        depth += opens - closes
        if depth > _DEEPEST:
            yield f"line {line}: more than {_DEEPEST} lists and mappings inside each other"
            return


def _wrong_keys(node: yaml.Node | None) -> Iterator[str]:
    """Keys that stand twice in one mapping, of which YAML would quietly take the last; keys that are no texts."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not str(key.tag).endswith(":str"):
                yield f"line {line}: YAML does not read the key {str(key.value)[:60]!r} as a text: put it in quotes"
            elif key.value in seen:
                yield f"line {line}: {key.value} stands here a second time (first in line {seen[key.value]}): keep one"
            seen.setdefault(str(key.value), line)
            yield from _wrong_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _wrong_keys(item)


def _lines(node: yaml.Node | None, path: Path_ = ()) -> Iterator[tuple[Path_, int]]:
    """Every place of the file, as pydantic names it, with its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, str(key.value)), key.start_mark.line + 1
            yield from _lines(value, (*path, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield (*path, str(number)), item.start_mark.line + 1
            yield from _lines(item, (*path, str(number)))


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{place}this is no YAML: {what}"


def _checked(path: Path, tree: dict[str, Any], lines: Lines) -> Policy:
    said = {key: value for key, value in tree.items() if value is not None}  # `data:` with nothing below it
    found = list(_contradictions(path.parent, said))
    policy: Policy | None = None
    try:
        policy = Policy.model_validate(said)
    except ValidationError as error:
        details = error.errors()
        found = [(tuple(map(str, detail["loc"])), _sentence(detail)) for detail in details] + found
    if policy is None or found:
        numbered = sorted((_line(place, lines), text) for place, text in found)
        raise PolicyError(path, [f"line {line}: {text}" for line, text in numbered])
    return policy


def _line(place: Path_, lines: Lines) -> int:
    """Where `place` is, or the nearest thing above it that the file has."""
    known = (lines[place[:depth]] for depth in range(len(place), 0, -1) if place[:depth] in lines)
    return next(known, 1)


def _sentence(detail: ErrorDetails) -> str:
    place = tuple(map(str, detail["loc"]))
    name = ".".join(place)
    if detail["type"] == "extra_forbidden":
        return f"unknown key {name!r}{did_you_mean(_near(place))}"
    if detail["type"] == "missing":
        return f"{name} is missing: {_meaning(place)}."
    if detail["type"] == "value_error" and isinstance(detail["input"], Mapping):
        return f"{name}: {detail['msg'].removeprefix('Value error, ')}."
    quote = _QUOTE if detail["type"] == "string_type" and not isinstance(detail["input"], list | dict) else ""
    return sentence(name, detail, policy_keys().get(_generic(place))) + quote


def _generic(place: Path_) -> str:
    """The schema's name of a place: NAME for an owner's name, and the list for what is in it."""
    named = (place[0], NAME, *place[2:]) if place and place[0] in _NAMED and len(place) > 1 else place
    prefixes = [".".join(named[:depth]) for depth in range(len(named), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in policy_keys()), prefixes[0] if prefixes else "")


def _near(place: Path_) -> list[str]:
    """What was probably meant, with the owner's own name in it."""
    dotted = ".".join((place[0], NAME, *place[2:]) if place[0] in _NAMED and len(place) > 1 else place)
    sections = {key.rpartition(".")[0] for key in policy_keys()} - {""}
    near = nearest(dotted, [*policy_keys(), *sorted(sections)])
    own = f"{place[0]}.{place[1]}." if len(place) > 1 else ""
    return [name.replace(f"{place[0]}.{NAME}.", own) for name in near]


def _meaning(place: Path_) -> str:
    """What a missing key would say; for a section, the keys in it."""
    found = policy_keys().get(".".join((place[0], NAME, *place[2:])))
    if found is not None:
        return f"{found.type} ({found.description})"
    inside = [key.rpartition(".")[2] for key in policy_keys() if key.startswith(f"{place[0]}.{NAME}.{place[-1]}.")]
    return f"it says {', '.join(inside)}"


def _contradictions(folder: Path, tree: Mapping[str, Any]) -> Iterator[tuple[Path_, str]]:
    """Between parts that are right by themselves; wrong parts are judged elsewhere."""
    raw = tree.get("data")
    parts = {str(name): _part(DataRule, each) for name, each in raw.items()} if isinstance(raw, dict) else {}
    rules = {name: rule for name, rule in parts.items() if rule is not None}
    privacy = _part(PrivacyRule, tree.get("privacy", {}))
    if privacy is not None:
        yield from _other_units(rules, privacy.unit)
    yield from _counted_twice(rules, folder)


def _part(kind: type[Part], raw: Any) -> Part | None:
    try:
        return kind.model_validate(raw)
    except ValidationError:
        return None


def _other_units(rules: Mapping[str, DataRule], unit: str) -> Iterator[tuple[Path_, str]]:
    for name, rule in rules.items():
        if rule.units and unit not in rule.units:
            text = (
                f"data.{name}.units = {list(rule.units)} lacks {unit!r}, which is the one unit of this site"
                " (privacy.unit): add it, change privacy.unit, or write [] if no run under local DP may use the data"
            )
            yield ("data", name, "units"), text


def _counted_twice(rules: Mapping[str, DataRule], folder: Path) -> Iterator[tuple[Path_, str]]:
    for (one, first), (other, second) in combinations(rules.items(), 2):
        if _place(one, first, folder) == _place(other, second, folder) and first.budget != second.budget:
            text = (
                f"data.{one} and data.{other} are the same data with the budgets {first.budget!r} and"
                f" {second.budget!r}: what is spent of the same people must be counted in one"
            )
            yield ("data", other, "budget"), text


def _place(name: str, rule: DataRule, folder: Path) -> tuple[str, str]:
    local = rule.place(folder)
    return rule.source, rule.path or name if local is None else str(local.resolve())
