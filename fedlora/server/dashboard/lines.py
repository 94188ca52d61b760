"""The lines of a run's log as each kind of reader may see them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fedlora.server.dashboard.people import Role
from fedlora.server.views.visibility import shown_event

Filter = Callable[[bytes], bytes | None]
"""A line of the log → what the reader sees of it, or None: nothing."""

_CLIENT = {"client_reported", "client_refused"}
_OTHERS = {"round_committed", "run_finished", "run_stopped", "run_failed"}
"""Events that say nothing of how many clients there are."""


def whole(line: bytes) -> bytes | None:
    """For whoever may see rosters: all but the server's own folder, and lines whose contents were erased."""
    event = _event(line)
    if event is None:
        return None
    event.pop("folder", None)
    return _text(event)


def released(line: bytes) -> bytes | None:
    """For whoever may not: only what is released. Events about clients are left out."""
    event = _event(line)
    shown = None if event is None else shown_event(Role.VIEWER, "central", event)
    return None if shown is None else _text(shown)


def own(client: int | None) -> Filter:
    """For a site that has the number `client` in the run: what is released, and what became of itself."""

    def see(line: bytes) -> bytes | None:
        event = _event(line)
        if event is not None and event["event"] in _CLIENT:
            row = event.get("row") or {}
            mine = client is not None and row.get("client") == client
            return _text(event) if mine else None
        return None if event is None or event["event"] not in _OTHERS else released(line)

    return see


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def _text(event: Mapping[str, Any]) -> bytes:
    """Strict JSON on one line, as a message of a stream must be."""
    return json.dumps(event, allow_nan=False, separators=(",", ":")).encode()
