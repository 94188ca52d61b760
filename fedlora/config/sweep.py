"""Sweeps in Hydra's own syntax, counted out into one list of overrides a job."""

from collections.abc import Sequence
from itertools import product

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from fedlora.errors import ConfigError


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job; inside `fedlora.config.groups.session`, which `glob(…)` needs.

    An override that cannot be read is left as it is, for `check` to report with all else.
    Raises ConfigError for a sweep that cannot be counted out.
    """
    values = [_values(text) for text in overrides]
    problems = [value for value in values if isinstance(value, str)]
    if problems:
        raise ConfigError(problems)
    return [list(job) for job in product(*(value for value in values if not isinstance(value, str)))]


def _values(text: str) -> list[str] | str:
    """The single overrides that `text` stands for, or a sentence about why it cannot be counted out."""
    try:
        override = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides([text])[0]
    except HydraException:
        return [text]
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        return f"override {text!r}: an interval has no end of values; use range(start,stop,step) or choice(a,b)"
    return _counted(override) or f"override {text!r}: this sweep has no values"


def _counted(override: Override) -> list[str]:
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
