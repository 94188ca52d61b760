"""From the `strategy` section to a method: its options are the fields of its dataclass, checked by pydantic."""

from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from fedlora.config.keys import MISSING, Key, did_you_mean, nearest, object_keys
from fedlora.config.schema import StrategyConfig
from fedlora.config.sentences import sentence
from fedlora.errors import ConfigError
from fedlora.strategies.base import Strategy
from fedlora.strategies.registry import get, strategies


def make_strategy(config: StrategyConfig) -> Strategy:
    """The method that `config` names, with its options.

    Raises StrategyError for an unknown method, or what the method's own checks say; ConfigError with every unknown
    option or value of a wrong type.
    """
    method = get(config.name)
    table = option_keys(method)
    unknown = [f"strategy.{name}" for name in config.options if f"strategy.{name}" not in table]
    if unknown:
        raise ConfigError([unknown_option(name, method) for name in unknown])
    try:
        return build(method, config.options)
    except ValidationError as error:
        raise ConfigError([_explain(detail, table) for detail in error.errors()]) from error


def build(method: type[Strategy], options: Mapping[str, Any]) -> Strategy:
    """An instance of `method`. Raises pydantic's ValidationError, or what the class's own checks raise."""
    made: Strategy = _adapter(method).validate_python(dict(options))
    return made


def plain_options(strategy: Strategy) -> dict[str, Any]:
    """The strategy's options as JSON values; `build` gives the same strategy from them."""
    plain: dict[str, Any] = _adapter(type(strategy)).dump_python(strategy, mode="json")
    return plain


def option_keys(method: type[Strategy]) -> dict[str, Key]:
    """The keys `strategy.<option>` of `method`."""
    return object_keys(_adapter(method).json_schema(), "strategy.")


def option_defaults(method: type[Strategy]) -> dict[str, Any]:
    """Each option's default as a JSON value; MISSING where one must be given."""
    return {field.name: _default(field) for field in fields(method)}  # type: ignore[arg-type]


def unknown_option(key: str, method: type[Strategy]) -> str:
    """A sentence about an option that `method` does not have."""
    hint = did_you_mean(nearest(key, list(option_keys(method))))
    owners = [name for name, other in sorted(strategies().items()) if key in option_keys(other)]
    whose = f" It is an option of {', '.join(owners)}." if owners else ""
    names = ", ".join(option_keys(method)) or "none"
    return f"{key}: {method.name} has no such option{hint}{whose} Options of {method.name}: {names}"


def _explain(detail: ErrorDetails, table: Mapping[str, Key]) -> str:
    key = ".".join(["strategy", *(str(part) for part in detail["loc"][:1])])
    return sentence(key, detail, table.get(key))


@cache
def _adapter(method: type[Strategy]) -> TypeAdapter[Any]:
    return TypeAdapter(method)


def _default(field: Any) -> Any:
    if field.default_factory is not NO_DEFAULT:
        return to_jsonable_python(field.default_factory())
    return MISSING if field.default is NO_DEFAULT else to_jsonable_python(field.default)
