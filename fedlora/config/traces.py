"""Traces of clients: a file that says of each one how fast it is, how it is connected, and when it is there.

CSV with a header, or JSONL; one line a client, in the order of their numbers. The columns `speed`, `up`, `down`
(Mbit/s) and `available` may each be missing, or empty in a line: then the client has speed 1, sends in no time, or is
always there. `available` holds intervals of virtual seconds: `0-3600;7200-9000` in CSV, `[[0, 3600], [7200, 9000]]` in
JSONL.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedlora.errors import ConfigError

SHOWN = 10
"""Problems of one file that are told in full."""

Interval = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]


def _split(value: Any) -> Any:
    """`0-3600;7200-9000` as pairs; anything else as it is."""
    return [part.split("-") for part in value.split(";")] if isinstance(value, str) else value


def _ascending(stays: tuple[Interval, ...] | None) -> tuple[Interval, ...] | None:
    for start, end in stays or ():
        if end <= start:
            raise ValueError(f"the interval {start:g}-{end:g} ends before it has begun")
    for (_, end), (start, _) in pairwise(stays or ()):
        if start < end:
            raise ValueError(f"an interval begins at {start:g}, before the one before it ends at {end:g}")
    return stays


class Traced(BaseModel):
    """What a trace says of one client. available: when it is there, ascending; None: always."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    speed: Annotated[float, Field(gt=0)] = 1.0
    up: Annotated[float | None, Field(gt=0)] = None
    down: Annotated[float | None, Field(gt=0)] = None
    available: Annotated[tuple[Interval, ...] | None, BeforeValidator(_split), AfterValidator(_ascending)] = None


@dataclass(frozen=True)
class _Line:
    """A line that was read: its number, and what it says, or why it says nothing."""

    number: int
    fields: Mapping[str, Any]
    problem: str = ""


def read_trace(path: Path, clients: int, period: float | None = None) -> Sequence[Traced]:
    """The first `clients` lines of a trace. period: seconds within which all intervals must lie, if not None.

    Raises ConfigError with what is wrong in the file: each with its line, what stands there, and what to do.
    """
    found, problems = list[Traced](), list[str]()
    try:
        for line in _lines(path):
            if len(found) + len(problems) >= clients:
                break
            _take(line, period, found, problems)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"virtual.trace = {path}: the file cannot be read: {error}"]) from error
    lines = len(found) + len(problems)
    if lines < clients:
        problems.append(
            f"it has lines for {lines} clients, and federation.clients = {clients}: add"
            f" {clients - lines}, or set federation.clients={max(1, lines)}"
        )
    if problems:
        more = [f"{len(problems) - SHOWN} more lines are wrong"] if len(problems) > SHOWN else []
        raise ConfigError([f"virtual.trace: {path}, {problem}" for problem in [*problems[:SHOWN], *more]])
    return found


def _take(line: _Line, period: float | None, found: list[Traced], problems: list[str]) -> None:
    """Adds what the line says to `found`, or what is wrong with it to `problems`."""
    try:
        traced = Traced.model_validate(dict(line.fields))
    except ValidationError as error:
        problem = line.problem or _first_of(error)
    else:
        problem = line.problem or _beyond(traced, period)
    if problem:
        problems.append(f"line {line.number}: {problem}")
    else:
        found.append(traced)


def _first_of(error: ValidationError) -> str:
    """What is wrong first, in the words of a trace."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"{name!r} is no column of a trace; there are {', '.join(Traced.model_fields)}: rename it or drop it"
    if name == "available":
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else "it is no list of intervals"
        return f"available: {reason}; write seconds as 0-3600;7200-9000 (JSONL: [[0, 3600], [7200, 9000]])"
    return f"{name} = {first['input']!r} is not a number above 0: correct it, or leave it empty"


def _beyond(traced: Traced, period: float | None) -> str:
    last = traced.available[-1][1] if traced.available else 0.0
    if period is None or last <= period:
        return ""
    return f"available goes on to {last:g} s, and all begins anew after virtual.period = {period:g} s: raise that"


def _lines(path: Path) -> Iterator[_Line]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from (_of_jsonl if path.suffix in (".jsonl", ".ndjson") else _of_csv)(file)


def _of_csv(file: Any) -> Iterator[_Line]:
    reader = csv.DictReader(file, restkey="more than the header has", restval="")
    for row in reader:
        yield _Line(reader.line_num, {name: value for name, value in row.items() if value != ""})


def _of_jsonl(file: Any) -> Iterator[_Line]:
    for number, text in enumerate(file, start=1):
        if text.strip():
            yield _json_line(number, text)


def _json_line(number: int, text: str) -> _Line:
    try:
        fields = json.loads(text)
    except ValueError as error:
        return _Line(number, {}, f"it is no JSON: {error}")
    if not isinstance(fields, dict):
        return _Line(number, {}, 'it is no JSON object: write {"speed": 0.5}, say')
    return _Line(number, {name: value for name, value in fields.items() if value is not None})
