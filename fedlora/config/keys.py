"""The schema as a table: every key with its type, default and meaning; and the known key nearest to a wrong one."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fedlora.config.schema import RunConfig

# OmegaConf's mark for a value that has to be given.
MISSING = "???"

_WORDS = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
    "null": "null",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


ELSEWHERE_CALLED = {
    "learning_rate": "train.lr",
    "batch_size": "train.batch",
    "local_steps": "train.steps",
    "max_steps": "train.steps",
    "max_grad_norm": "train.clip_norm",
    "rank": "adapter.r",
    "lora_r": "adapter.r",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "num_clients": "federation.clients",
    "clients_per_round": "federation.cohort",
    "num_rounds": "federation.rounds",
    "num_workers": "engine.workers",
    "sigma": "privacy.noise_multiplier",
    "target_epsilon": "privacy.epsilon",
    "target_delta": "privacy.delta",
    "sample_rate": "privacy.rate",
    "clipping_norm": "privacy.clip",
    "clip_bound": "privacy.clip",
}
"""Names of other libraries for what is meant here."""


@dataclass(frozen=True)
class Key:
    """One key. `type` says in words what it may be; `default` is JSON text, or None where a value must be given.

    free: whether it holds a mapping whose own keys the schema does not know.
    """

    name: str
    type: str
    default: str | None
    description: str
    free: bool = False


@cache
def keys() -> Mapping[str, Key]:
    """Every key of the schema, dotted, in the schema's order; a method's own options are not among them."""
    return {key.name: key for key in _walk("", RunConfig.model_json_schema(), RunConfig.model_json_schema())}


@cache
def sections() -> frozenset[str]:
    """The dotted names that hold keys, e.g. `data` and `data.partition`."""
    parts = [name.split(".")[:-1] for name in keys()]
    return frozenset(".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1))


def base() -> dict[str, Any]:
    """A nested mapping with the schema's default for every key, and MISSING where it has none."""
    tree: dict[str, Any] = {}
    for key in keys().values():
        *path, last = key.name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = MISSING if key.default is None else json.loads(key.default)
    return tree


def object_keys(schema: Mapping[str, Any], prefix: str) -> dict[str, Key]:
    """The keys of a JSON schema of an object, each named `prefix` + its name."""
    return {key.name: key for key in _walk(prefix, schema, schema)}


def known(name: str, names: Mapping[str, Key]) -> bool:
    """Whether `name` is one of `names`, or lies inside one that holds a free mapping."""
    return name in names or any(key.free and name.startswith(f"{key.name}.") for key in names.values())


def nearest(word: str, candidates: Sequence[str]) -> list[str]:
    """The candidates that `word` was probably meant to be, most probable first; empty if none is near."""
    last = word.rsplit(".", 1)[-1]
    if ELSEWHERE_CALLED.get(last) in candidates:
        return [ELSEWHERE_CALLED[last]]
    elsewhere = [name for name in candidates if name.rsplit(".", 1)[-1] == last]
    return difflib.get_close_matches(word, elsewhere or candidates, n=1, cutoff=0.75) or elsewhere


def did_you_mean(names: Sequence[str]) -> str:
    """The end of a sentence about a wrong name: `; did you mean 'a' or 'b'?`, or a full stop."""
    return f"; did you mean {' or '.join(repr(name) for name in names)}?" if names else "."


def _walk(prefix: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Key]:
    required = schema.get("required", ())
    for name, entry in schema.get("properties", {}).items():
        resolved = _resolve(entry, root)
        if "properties" in resolved:
            yield from _walk(f"{prefix}{name}.", resolved, root)
        else:
            yield _key(prefix + name, {**resolved, **entry}, root, name in required)


def _key(name: str, entry: Mapping[str, Any], root: Mapping[str, Any], required: bool) -> Key:
    return Key(
        name=name,
        type=_type_text(entry, root),
        default=None if required else json.dumps(entry.get("default"), ensure_ascii=False),
        description=entry.get("description", ""),
        free=any(part.get("type") == "object" for part in entry.get("anyOf", [entry])),
    )


def _type_text(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    schema = _resolve(schema, root)
    if "anyOf" in schema:
        return " or ".join(_type_text(part, root) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    word = schema.get("format") or _WORDS.get(schema.get("type", ""), "any")
    bounds = " and ".join(f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema)
    items = f" of {_type_text(schema['items'], root)}" if isinstance(schema.get("items"), Mapping) else ""
    return f"{word}{items} {bounds}".strip()


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Mapping[str, Any] = root["$defs"][reference.rsplit("/", 1)[-1]]
    return found
