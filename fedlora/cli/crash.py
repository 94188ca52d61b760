"""The traceback of an unexpected error goes to a file: the terminal gets a sentence."""

import os
import platform
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

import fedlora


def write_crash_log(error: BaseException) -> str:
    """Writes the traceback, command line and versions to the user's log folder; returns where, as a sentence."""
    text = "\n".join(
        [
            f"fedlora {fedlora.__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"command: {' '.join(sys.argv)}",
            "".join(traceback.format_exception(error)),
        ]
    )
    return f"The traceback is in {_write(text)}; please report it with that file."


def _write(text: str) -> Path:
    """To the log folder of the user; to a temporary folder if that cannot be written."""
    from platformdirs import user_log_path

    name = f"crash-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        path = user_log_path("fedlora", ensure_exists=True) / name
        path.write_text(text, encoding="utf-8")
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="fedlora-")) / name
        path.write_text(text, encoding="utf-8")
    return path
