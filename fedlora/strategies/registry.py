"""Which methods there are: the built-in ones, and those of installed packages.

A package adds one by the entry-point group `fedlora.strategies`; in its pyproject.toml:

    [project.entry-points."fedlora.strategies"]
    my_method = "my_package.my_module:MyMethod"

`docs/add-a-strategy.md` shows how.
"""

import difflib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from fedlora.errors import StrategyError
from fedlora.strategies.base import Strategy
from fedlora.strategies.fed_sb import FedSb
from fedlora.strategies.fedavg import FedAvg
from fedlora.strategies.ffa_lora import FfaLora
from fedlora.strategies.lora_fair import LoraFair

GROUP = "fedlora.strategies"

_BUILT_IN: Mapping[str, type[Strategy]] = MappingProxyType(
    {strategy.name: strategy for strategy in (FedAvg, FfaLora, LoraFair, FedSb)}
)

_TEXTS = ("name", "summary", "paper")


def strategies() -> Mapping[str, type[Strategy]]:
    """Every method by name: the built-in ones, then those of installed packages in the order of their names.

    Raises StrategyError, naming the package, if a package's method cannot be loaded, is no valid strategy, or takes a
    name that is already given.
    """
    return {**_BUILT_IN, **{name: _load(entry) for name, entry in sorted(_plugins().items())}}


def get(name: str) -> type[Strategy]:
    """The method called `name`; no other package's method is loaded for it.

    Raises StrategyError for an unknown name, with the nearest known one, and as `strategies` does.
    """
    plugins = _plugins()
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name in plugins:
        return _load(plugins[name])
    known = [*_BUILT_IN, *sorted(plugins)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise StrategyError(f"there is no strategy {name!r}.{hint} Known: {', '.join(known)}")


def _plugins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        owner = (
            _owner(found[entry.name]) if entry.name in found else "fedlora itself" if entry.name in _BUILT_IN else None
        )
        if owner:
            raise StrategyError(
                f"{_owner(entry)} names its strategy {entry.name!r}, but {owner} has one of that name:"
                " uninstall one of them, or rename the entry point"
            )
        found[entry.name] = entry
    return found


def _owner(entry: EntryPoint) -> str:
    return f"package {entry.dist.name} {entry.dist.version}" if entry.dist else f"entry point {entry.value}"


def _load(entry: EntryPoint) -> type[Strategy]:
    try:
        loaded = entry.load()
    except Exception as error:  # whatever a package does when it is imported
        raise StrategyError(
            f"{_owner(entry)} offers strategy {entry.name!r} as {entry.value}, which cannot be loaded:"
            f" {type(error).__name__}: {error}"
        ) from error
    problem = _problem(loaded, entry.name)
    if problem:
        raise StrategyError(f"{_owner(entry)} offers strategy {entry.name!r} as {entry.value}, but {problem}")
    strategy: type[Strategy] = loaded
    return strategy


def _problem(loaded: Any, name: str) -> str | None:
    """Why `loaded` is no strategy called `name`, or None if it is one."""
    if not (isinstance(loaded, type) and issubclass(loaded, Strategy)):
        return f"that is no subclass of {Strategy.__module__}.Strategy"
    if inspect.isabstract(loaded):
        return f"it does not define {', '.join(sorted(loaded.__abstractmethods__))}"
    # Its own decorator counts: a plain subclass of a frozen dataclass would lose the options it adds.
    if not getattr(vars(loaded).get("__dataclass_params__"), "frozen", False):
        return "the class is not decorated with @dataclass(frozen=True)"
    missing = [text for text in _TEXTS if not (isinstance(getattr(loaded, text, None), str) and getattr(loaded, text))]
    if missing or not isinstance(getattr(loaded, "exact", None), bool):
        lacks = ", ".join(missing or ["exact"])
        return f"the class does not say {lacks} ({', '.join(_TEXTS)}: texts; exact: True or False)"
    return None if loaded.name == name else f"the class calls itself {loaded.name!r}: entry point and `name` must agree"
