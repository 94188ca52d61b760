"""What runs are called, and which run a user means."""

import difflib
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from fedlora.errors import StoreError, UnknownRunError
from fedlora.server.records import RunInfo

LATEST = "latest"
_VALID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def new_id(strategy: str, now: datetime) -> str:
    """An id that sorts by time and can be read aloud, e.g. `20261121-231500-fed_sb-3f2a` (UTC)."""
    word = re.sub(r"[^A-Za-z0-9_]+", "_", strategy)[:40]
    return f"{now:%Y%m%d-%H%M%S}-{word}-{secrets.token_hex(2)}"


def check_id(run_id: str) -> str:
    """`run_id`, if it can name a run and a folder. Raises StoreError otherwise."""
    if run_id == LATEST or not _VALID.fullmatch(run_id):
        raise StoreError(
            f"{run_id!r} cannot be a run's id: an id has 1 to 100 letters, digits, '.', '_' or '-', starts with a"
            f" letter or digit, and is not {LATEST!r}"
        )
    return run_id


def choose(runs: Sequence[RunInfo], text: str, store: Path) -> RunInfo:
    """The run of `runs` (newest first) that `text` means: `latest`, an id, a folder, a name, or how an id starts.

    Raises UnknownRunError if there is none (with the nearest words) or more than one (with all of them).
    """
    if not runs:
        raise UnknownRunError(f"no run {text!r}: the store {store} has no runs yet; `fedlora simulate` makes one")
    if text == LATEST:
        return runs[0]
    for means in _ways(text):
        found = [run for run in runs if means(run)]
        if found:
            return _only(found, text, store)
    raise UnknownRunError(f"no run {text!r} in the store {store}{_nearest(runs, text)}; `fedlora runs ls` lists them")


def _ways(text: str) -> Sequence[Callable[[RunInfo], bool]]:
    """How a text can mean a run, the surest way first."""
    folder = Path(text).resolve()
    return (
        lambda run: run.id == text,
        lambda run: run.folder.resolve() == folder,
        lambda run: run.name == text,
        lambda run: bool(text) and run.id.startswith(text),
    )


def _only(found: Sequence[RunInfo], text: str, store: Path) -> RunInfo:
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"  - {run.id}  ({run.name})" for run in found[:20])
    more = f"\n  … and {len(found) - 20} more" if len(found) > 20 else ""
    raise UnknownRunError(f"{text!r} means {len(found)} runs in the store {store}; give one id:\n{listed}{more}")


def _nearest(runs: Sequence[RunInfo], text: str) -> str:
    words = [LATEST, *(word for run in runs for word in (run.id, run.name))]
    near = difflib.get_close_matches(text, list(dict.fromkeys(words)), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(word) for word in near)}?" if near else ""
