"""The config groups, as Hydra finds and composes them: fedlora's own YAML, the methods, a user's `--config-dir`.

A method needs no YAML: its group option is made from its class. The order in which Hydra applies the groups (the
method's own defaults over the other groups, an experiment over both) is that of `conf/config.yaml`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedlora.config.keys import base
from fedlora.config.said import GROUPS
from fedlora.config.strategy import option_defaults
from fedlora.errors import ConfigError
from fedlora.strategies.base import Strategy
from fedlora.strategies.registry import strategies

CONF = "fedlora.config.conf"

Choices = Mapping[str, str | None]


Methods = Mapping[str, type[Strategy]]


@dataclass(frozen=True)
class _Memory:
    """What Hydra has answered: it needs 0.1 s for each composition."""

    composed: dict[tuple[tuple[str, str | None], ...], DictConfig] = field(default_factory=dict)
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Groups:
    """What Hydra knows inside one `session`; `methods` are those that the group `strategy` was made of."""

    def __init__(self, methods: Methods, searchpath: Sequence[str], memory: _Memory) -> None:
        self.methods = methods
        self._searchpath = list(searchpath)
        self._memory = memory

    def options(self, group: str) -> tuple[str, ...]:
        """The names that may be chosen in `group`, sorted."""
        options = self._memory.options
        if group not in options:
            loader = GlobalHydra.instance().config_loader()
            options[group] = tuple(sorted(loader.get_group_options(group, overrides=self._searchpath)))
        return options[group]

    def compose(self, choices: Choices) -> DictConfig:
        """The schema's defaults with the chosen options over them. Raises ConfigError if a YAML of theirs is wrong."""
        key = tuple(sorted(choices.items()))
        if key not in self._memory.composed:
            self._memory.composed[key] = self._compose(choices)
        return deepcopy(self._memory.composed[key])

    def _compose(self, choices: Choices) -> DictConfig:
        picks = [f"{group}={'null' if option is None else option}" for group, option in choices.items()]
        try:
            chosen = hydra_compose("config", overrides=[*self._searchpath, *picks])
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            told = " ".join(str(error).split())
            raise ConfigError([f"the groups {', '.join(picks)} cannot be put together: {told}"]) from error
        OmegaConf.set_struct(chosen, False)
        merged = OmegaConf.merge(OmegaConf.create(base()), chosen)
        if not isinstance(merged, DictConfig):
            raise ConfigError(["the composed configuration is not a mapping"])
        return merged


@contextmanager
def session(config_dir: Path | None = None) -> Iterator[Groups]:
    """Hydra, set up for fedlora's groups and those in `config_dir`; afterwards as it was before, in use or not.

    Raises ConfigError if `config_dir` is no folder or has an option that fedlora has too.
    """
    searchpath = [] if config_dir is None else [_searchpath(config_dir)]
    methods = strategies()
    memory = _shipped_memory(tuple(methods.items())) if config_dir is None else _Memory()
    _register_strategies(methods)
    hydra, version = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
    GlobalHydra.instance().clear()
    try:
        initialize_config_module(CONF, job_name="fedlora", version_base="1.3")
        yield Groups(methods, searchpath, memory)
    finally:
        GlobalHydra.instance().hydra = hydra
        VersionBase.instance().version_base = version


def shipped() -> dict[str, str]:
    """fedlora's own YAML: path below `conf/`, without its ending → text."""
    root = resources.files(CONF)
    paths = [f"{folder}/{entry.name}" for folder in GROUPS for entry in _files(root.joinpath(folder))]
    return {path.removesuffix(".yaml"): root.joinpath(path).read_text(encoding="utf-8") for path in sorted(paths)}


def defaults() -> dict[str, str | None]:
    """The option of each group that is used if none is chosen."""
    listed = yaml.safe_load(resources.files(CONF).joinpath("config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for entry in listed if isinstance(entry, dict) for group, option in entry.items()}


def _files(folder: Any) -> Iterator[Any]:
    return (entry for entry in folder.iterdir() if entry.name.endswith(".yaml")) if folder.is_dir() else iter(())


def _searchpath(config_dir: Path) -> str:
    folder = config_dir.resolve()
    if not folder.is_dir():
        raise ConfigError([f"--config-dir {config_dir}: there is no such folder"])
    ours = shipped()
    theirs = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]
    hidden = [name for name in theirs if name in ours or name == "config"]
    if hidden:
        raise ConfigError(
            [f"--config-dir {config_dir}: {name}.yaml is an option of fedlora's own; rename yours" for name in hidden]
        )
    return f"hydra.searchpath=[{QuotedString(f'file://{folder}', Quote.single).with_quotes()}]"


@cache
def _shipped_memory(methods: tuple[tuple[str, type[Strategy]], ...]) -> _Memory:
    """Kept for good: what fedlora ships does not change while it runs. A user's own folder may."""
    del methods
    return _Memory()


def _register_strategies(methods: Methods) -> None:
    """Makes the group `strategy` from the methods' classes, replacing what was there."""
    store = ConfigStore.instance()
    store.repo.pop("strategy", None)
    for name, method in methods.items():
        node: DictConfig = OmegaConf.create({"strategy": {"name": name, **option_defaults(method)}})
        for key, value in method.defaults.items():
            OmegaConf.update(node, key, value, force_add=True)
        store.store(group="strategy", name=name, node=node, package="_global_", provider="fedlora")
