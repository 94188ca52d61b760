"""A run's event log, read from its end: what it says of clients, and who is being waited for."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedlora.server.durable import explained
from fedlora.server.events import FILE
from fedlora.server.records import RunInfo
from fedlora.server.views.facts import Facts, facts
from fedlora.server.views.model import ClientEvent, ClientEvents

BLOCK = 1 << 16
"""Bytes that are read at a time."""

MOST_READ = 1 << 23
"""Bytes that are looked through for one answer; a further question goes on from there."""

_TOLD = ("client_reported", "client_refused")
_ENDS = ("run_started", "run_resumed", "round_committed", "run_finished", "run_stopped", "run_failed")
_TAIL = 1 << 20  # bytes in which what is under way is looked for


@dataclass(frozen=True)
class UnderWay:
    """The round that is under way, as the log tells. began: when its clients were asked. cohort: they; done: those of
    whom an answer was judged. retried: why it is tried again, "" if it is not. All empty before the first round.
    """

    round: int = 0
    began: datetime | None = None
    cohort: Sequence[int] = ()
    done: Sequence[int] = ()
    retried: str = ""


def under_way(run: RunInfo) -> UnderWay:
    """Of a run that is being driven."""
    done: list[int] = []
    retried = ""
    for _, line in _backwards(run.folder / FILE, None, _TAIL):
        event = _parsed(line)
        kind = event.get("event")
        if kind in _TOLD:
            done.append(int(_row(event).get("client", -1)))
        elif kind == "round_retried":
            return UnderWay(_number(event), retried=str(event.get("reason", "")))
        elif kind == "round_started":
            return UnderWay(_number(event), _time(event), tuple(event.get("cohort", ())), tuple(done), retried)
        elif kind in _ENDS and kind != "round_committed":
            break
    return UnderWay()


def client_events(run: RunInfo, client: str | None, before: int | None, limit: int) -> ClientEvents:
    """What the log says of one client, or of all, newest first; `limit` events at most, from before that position."""
    names = facts(run)
    number = None if client is None else number_of(names, client)
    if client is not None and number is None:
        return ClientEvents((), None)
    found: list[ClientEvent] = []
    position = None
    for position, line in _backwards(run.folder / FILE, before, MOST_READ):
        event = _parsed(line) if b'"client_re' in line[:40] else {}
        if event.get("event") in _TOLD and number in (None, _row(event).get("client")):
            found.append(_client_event(position, event, names))
        if len(found) == limit:
            break
    return ClientEvents(tuple(found), position or None)


def number_of(names: Facts, client: str) -> int | None:
    """The number of a client by its name, or by its number where it is virtual; None if there is none."""
    if names.sites:
        return names.sites.index(client) if client in names.sites else None
    return int(client) if client.isascii() and client.isdecimal() and len(client) < 12 else None


def _client_event(position: int, event: Mapping[str, Any], names: Facts) -> ClientEvent:
    row = _row(event)
    number = int(row.get("client", -1))
    return ClientEvent(
        position=position,
        time=_time(event),
        round=_number(event),
        client=names.name(number),
        number=number,
        event=str(event["event"]),
        outcome=str(row.get("outcome", "")),
        reason=str(row.get("reason", "")),
    )


def _backwards(path: Path, before: int | None, most: int) -> Iterator[tuple[int, bytes]]:
    """(position, line) of whole lines, the last one first, from before a position; `most` bytes at most, and a line."""
    if not path.is_file():
        return
    with explained("read the event log", path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = size if before is None else min(before, size)
        stop, data, found = start - most, b"", False
        while start > 0 and (start > stop or not found):
            place, start = start, max(0, start - BLOCK)
            file.seek(start)
            data = file.read(place - start) + data
            *lines, rest = data.split(
                b"\n"
            )  # the rest is a line without its end, the first may be without its beginning
            place = start + len(data) - len(rest)
            for line in reversed(lines[0 if start == 0 else 1 :]):
                found = True
                place -= len(line) + 1
                yield place, line
            data = lines[0] + b"\n" if lines else rest


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # spaces, where something was erased
        return {}
    return found if isinstance(found, dict) else {}


def _row(event: Mapping[str, Any]) -> Mapping[str, Any]:
    row = event.get("row")
    return row if isinstance(row, dict) else {}


def _number(event: Mapping[str, Any]) -> int:
    return int(event.get("round", 0))


def _time(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(event["time"]))
