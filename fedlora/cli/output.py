"""What the commands print with: one console a stream, and JSON for scripts."""

import json
import math
import sys
from typing import Any

from rich.console import Console

# Columns where the output is no terminal: nothing is cut that a script could look for.
_PIPE_WIDTH = 200


def stdout() -> Console:
    """The console for what a command was asked for. Made at each call: tests and pipes replace the stream."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def stderr() -> Console:
    """The console for errors, and for progress where stdout carries JSON."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH, highlight=False)


def emit_json(value: Any) -> None:
    """Writes `value` as one JSON document on stdout. Numbers that JSON does not have (NaN, infinity) become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
