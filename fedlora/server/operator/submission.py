"""From what an operator sends to the configuration of a run. It is data: nothing in it is looked up or run."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedlora.config.compose import compose
from fedlora.config.keys import keys
from fedlora.config.rules import contradictions
from fedlora.config.said import Said, from_overrides
from fedlora.config.schema import EngineConfig, RunConfig, StrategyConfig
from fedlora.config.sentences import dotted, sentence
from fedlora.config.strategy import make_strategy, plain_options
from fedlora.errors import ConfigError, FedloraError

Override = Annotated[str, StringConstraints(max_length=4000)]

_PLACES = ("store", "output", "privacy.ledgers")
_ENGINE = EngineConfig(name="auto", workers=None, address=None, group=None)
_composing = threading.Lock()  # Hydra is one for a whole process


class Submission(BaseModel):
    """The body of POST /runs: overrides as for `fedlora simulate`, or a whole configuration.

    submit_key: a text of the sender's; the same one gives the same run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    overrides: list[Override] | None = Field(None, max_length=500)
    config: dict[str, Any] | None = None
    submit_key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None


class Resumption(BaseModel):
    """The body of POST /runs/{id}/resume; rounds: in all."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rounds: int | None = Field(None, ge=1)


class Restart(BaseModel):
    """The body of POST /runs/{id}/restart; without: names of sites."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    without: tuple[str, ...] = Field(min_length=1, max_length=100)


def read_submission(submission: Submission) -> RunConfig:
    """The configuration. Raises ConfigError with every mistake.

    Not from here: places on the server's disk for its results, and the engine, which is the server's clients.
    """
    if (submission.overrides is None) == (submission.config is None):
        raise ConfigError(["send either overrides (a list of KEY=VALUE) or config (a whole configuration)"])
    if submission.config is not None:
        return _from_config(submission.config)
    return _from_overrides(submission.overrides or [])


def _from_overrides(overrides: list[str]) -> RunConfig:
    said = {text: from_overrides([text]) for text in overrides}
    problems = [f"override {text!r}: {why}" for text in said for why in _refusals(text, said[text])]
    kept = [text for text in overrides if not any(_refusals(text, said[text]))]
    try:
        with _composing:
            config = compose(kept)
        problems += _misplaced(config)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def _refusals(text: str, said: Said) -> Iterator[str]:
    """Why a single override is not for a server; nothing if it is, or if `compose` will say what is wrong with it."""
    if "${" in text or any("${" in value for entry in said.entries for value in _texts(entry.value)):
        yield "a server looks nothing up: write the value itself in place of ${…}"
        return
    for entry in said.entries:
        key = entry.key.replace("/", ".")
        if key in _PLACES:
            yield _place(key)
        elif (key == "engine" and entry.value != _ENGINE.name) or _other_engine(key, entry.value):
            yield _engine(key)


def _other_engine(key: str, value: Any) -> bool:
    section, _, name = key.partition(".")
    return section == "engine" and bool(name) and value != getattr(_ENGINE, name, None)


def _place(key: str) -> str:
    return f"{key}: where results go on its disk is for the server to say: leave it out"


def _engine(key: str) -> str:
    return f"{key}: the server's own clients do the work, not an engine of a simulation: leave it out"


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of an override."""
    if isinstance(value, Mapping):
        parts: Iterable[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        parts = value
    else:
        yield str(value)
        return
    for part in parts:
        yield from _texts(part)


def _from_config(raw: Mapping[str, Any]) -> RunConfig:
    """As `compose` ends: first each value, then what contradicts."""
    try:
        config = RunConfig.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        found = [sentence(key := dotted(detail), detail, keys().get(key)) for detail in error.errors()]
        raise ConfigError(list(dict.fromkeys(found))) from error
    problems = list(_misplaced(config))
    try:
        method = make_strategy(config.strategy)
        problems += [found.text for found in contradictions(config)]
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    except FedloraError as error:
        raise ConfigError([*problems, str(error)]) from error
    if problems:
        raise ConfigError(problems)
    strategy = StrategyConfig(name=method.name, **plain_options(method))
    return config.model_copy(update={"strategy": strategy})


def _misplaced(config: RunConfig) -> Iterator[str]:
    """What a whole configuration must leave at its default."""
    if config.store != RunConfig.model_fields["store"].default:
        yield _place("store")
    if config.output is not None:
        yield _place("output")
    if config.privacy.ledgers is not None:
        yield _place("privacy.ledgers")
    if config.engine.model_copy(update={"group": _ENGINE.group}) != _ENGINE:  # 1, where a file says nothing
        yield _engine("engine")
