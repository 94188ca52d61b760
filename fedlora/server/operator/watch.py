"""Follows a run of a server until it ends, through every break of the connection."""

import json
import time
from collections.abc import Callable

from fedlora.errors import ExitCode, LinkError
from fedlora.server.events import Listener, from_json
from fedlora.server.operator.client import LostError, OperatorClient
from fedlora.server.operator.messages import END, MESSAGE

_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each further try; the last one from then on
PATIENCE = 600.0
"""Seconds without a word from the server after which a watch gives up."""


def follow(
    client: OperatorClient,
    run_id: str,
    listener: Listener,
    lost: Callable[[LinkError], None],
    patience: float = PATIENCE,
) -> ExitCode:
    """Gives each event of the run to `listener`, once, the earlier ones too; returns when the run has ended.

    The exit code is the one with which `fedlora simulate` would have ended. lost: told of each break, before the
    connection is tried again. Raises LinkError if the server cannot be reached at first, or for `patience` seconds.
    """
    seen, tries, met = 0, 0, False
    broken: float | None = None
    while True:
        try:
            for kind, number, text in client.messages(run_id, seen):
                seen, tries, met, broken = number, 0, True, None
                if kind == END:
                    return _exit_code(text)
                if kind == MESSAGE:
                    _tell(listener, text)
        except LinkError as error:
            met = met or isinstance(error, LostError)
            broken = time.monotonic() if broken is None else broken
            if not met or time.monotonic() - broken > patience:
                raise
            lost(error)
            time.sleep(_WAITS[min(tries, len(_WAITS) - 1)])
            tries += 1


def _tell(listener: Listener, text: str) -> None:
    """An event that this version does not know is left out: a newer server wrote it."""
    try:
        event = from_json(text)
    except ValueError:
        return
    listener(event)


def _exit_code(text: str) -> ExitCode:
    try:
        return ExitCode(json.loads(text)["exit_code"])
    except (ValueError, KeyError, TypeError):
        return ExitCode.INTERNAL
