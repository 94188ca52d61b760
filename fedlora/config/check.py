"""All mistakes of a configuration at once: names first, then one pass of the schema, then what contradicts.

No mistake hides another: what is wrong is reported, replaced by what the chosen groups or the schema say, and the rest
is checked as it stands. A contradiction is reported only between values that are right by themselves.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from fedlora.config.groups import Groups
from fedlora.config.keys import MISSING, Key, keys
from fedlora.config.names import choices, settle_groups, settle_keys, without_overruled
from fedlora.config.rules import contradictions
from fedlora.config.said import Entry, Problem, Said
from fedlora.config.schema import RunConfig, StrategyConfig
from fedlora.config.sentences import dotted, sentence
from fedlora.config.strategy import build, option_keys, plain_options
from fedlora.errors import ConfigError, FedloraError
from fedlora.strategies.base import Strategy

Tree = dict[str, Any]
Fault = tuple[str, str]  # dotted key, sentence

# The key of a fault in a method's options taken together.
STRATEGY = "strategy"


def check(said: Said, groups: Groups) -> RunConfig:
    """The configuration that `said` describes. Raises ConfigError with every problem."""
    entries, problems = settle_groups(without_overruled(said.entries), groups)
    problems = [*said.problems, *problems]
    composed = groups.compose(choices(entries))
    method = _method(composed, groups)
    values, unknown = settle_keys([entry for entry in entries if not entry.choice], method)
    tree, unfit = _apply(composed, values)
    config, wrong = _judge(tree, [*entries, *values], method, groups)
    problems += [*unknown, *unfit]
    problems += _once(wrong, problems)
    if problems or config is None:
        raise ConfigError([str(problem) for problem in problems])
    return config


def _method(composed: DictConfig, groups: Groups) -> type[Strategy]:
    name = OmegaConf.select(composed, "strategy.name")
    if name not in groups.methods:
        raise ConfigError([f"the chosen groups set strategy.name = {name!r}; there are: {', '.join(groups.methods)}"])
    return groups.methods[name]


def _once(problems: Iterable[Problem], told: Iterable[Problem]) -> list[Problem]:
    """Without those about an entry that was already found wrong (a near name was tried in its place)."""
    places = {(problem.origin, problem.key) for problem in told}
    return [problem for problem in problems if (problem.origin, problem.key) not in places]


def _apply(composed: DictConfig, values: Sequence[Entry]) -> tuple[Tree, list[Problem]]:
    """The composed groups with the values over them, resolved; values that cannot be set or resolved are left out."""
    config = deepcopy(composed)
    unfit = [problem for entry in values if (problem := _set(config, entry))]
    unfit = unfit or [problem for entry in values if (problem := _resolve(config, entry))]
    if unfit:
        bad = {(problem.origin, problem.key) for problem in unfit}
        tree, further = _apply(composed, [entry for entry in values if (entry.origin, entry.key) not in bad])
        return tree, [*unfit, *further]
    try:
        tree = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"the composed configuration cannot be resolved: {_flat(error)}"]) from error
    return _given(tree), []


def _set(config: DictConfig, entry: Entry) -> Problem | None:
    try:
        OmegaConf.update(config, entry.key, entry.value, force_add=True)
    except OmegaConfBaseException as error:
        return Problem(entry.origin, f"{entry.key} cannot be set to {entry.value!r}: {_flat(error)}", entry.key)
    return None


def _resolve(config: DictConfig, entry: Entry) -> Problem | None:
    if "${" not in str(entry.value):
        return None
    try:
        value = OmegaConf.select(config, entry.key)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException as error:
        return Problem(entry.origin, f"{entry.key} = {entry.value!r} cannot be resolved: {_flat(error)}", entry.key)
    return None


def _flat(error: Exception) -> str:
    return str(error).splitlines()[0]


def _given(tree: Any) -> Any:
    """Without what has to be given and was not, so that the schema reports it."""
    if not isinstance(tree, dict):
        return tree
    return {key: _given(value) for key, value in tree.items() if value != MISSING}


def _judge(
    tree: Tree, entries: Sequence[Entry], method: type[Strategy], groups: Groups
) -> tuple[RunConfig | None, list[Problem]]:
    """The configuration, if `tree` has no fault; otherwise its faults and contradictions."""
    faults = _faults(tree, method)
    config = _build(_mended(tree, faults, groups) if faults else tree, method)
    problems = [Problem(_origin([key], entries), text, key) for key, text in faults]
    wrong = {key for key, _ in faults}
    found = contradictions(config) if config else []
    problems += [Problem(_origin(c.keys, entries), c.text) for c in found if wrong.isdisjoint(c.keys)]
    return config, problems


def _faults(tree: Tree, method: type[Strategy]) -> list[Fault]:
    """What the schema and the method's class say about single keys."""
    table: Mapping[str, Key] = {**keys(), **option_keys(method)}
    faults: list[Fault] = []
    try:
        RunConfig.model_validate(tree)
    except ValidationError as error:
        faults += [(key := dotted(detail), sentence(key, detail, table.get(key))) for detail in error.errors()]
    try:
        build(method, _options(tree))
    except ValidationError as error:
        for detail in error.errors():
            key = ".".join(["strategy", *(str(part) for part in detail["loc"][:1])])
            faults.append((key, sentence(key, detail, table.get(key))))
    except FedloraError as error:
        faults.append((STRATEGY, str(error)))
    return faults


def _options(tree: Tree) -> Tree:
    return {key: value for key, value in tree["strategy"].items() if key != "name"}


def _mended(tree: Tree, faults: Iterable[Fault], groups: Groups) -> Tree:
    """`tree` with the schema's default for each wrong value, or what fedlora's default groups say."""
    if any(key == STRATEGY for key, _ in faults):
        tree = {**tree, "strategy": {"name": tree["strategy"]["name"]}}
    spare = OmegaConf.to_container(groups.compose({}))
    mended = deepcopy(tree)
    for key in {key for key, _ in faults} - {STRATEGY}:
        *path, last = key.split(".")
        node, source = mended, spare
        for part in path:
            node, source = node.get(part, {}), source.get(part, {}) if isinstance(source, dict) else {}
        node.pop(last, None)
        if key in keys() and isinstance(source, dict) and source.get(last) is not None:
            node[last] = source[last]
    return mended


def _build(tree: Tree, method: type[Strategy]) -> RunConfig | None:
    """The configuration with the method's options in full and of the right types; None if it is still wrong."""
    try:
        config = RunConfig.model_validate(tree)
        options = plain_options(build(method, _options(tree)))
    except (ValidationError, FedloraError):
        return None
    return config.model_copy(update={"strategy": StrategyConfig(name=method.name, **options)})


def _origin(names: Sequence[str], entries: Sequence[Entry]) -> str:
    """Where the keys `names` were set: the last place for each."""
    places = [place for name in names if (place := _place(name, entries))]
    return " and ".join(dict.fromkeys(places)) or "the chosen groups"


def _place(name: str, entries: Sequence[Entry]) -> str | None:
    """The value that was said last, else the choice of the group that it is in."""
    said = [entry.origin for entry in entries if not entry.choice and _about(entry.key, name)]
    chosen = [entry.origin for entry in entries if entry.choice and _about(entry.key.replace("/", "."), name)]
    return next(reversed([*chosen, *said]), None)


def _about(key: str, name: str) -> bool:
    return key == name or name.startswith(f"{key}.") or key.startswith(f"{name}.")
