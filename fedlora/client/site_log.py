"""The site's own log: one line of JSON each, in files that only the owner may read, of bounded size."""

import json
import logging
from datetime import UTC, datetime
from io import BufferedWriter, FileIO, TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from fedlora.client.home import SiteHome
from fedlora.client.own_files import open_own
from fedlora.client.policy import LogRule
from fedlora.server.durable import explained

FIELDS = ("server", "run", "round", "kind", "work")
"""What a log call may say beside its text, by `extra={"run": …}`: nothing here may tell of rows."""


class SiteLog(RotatingFileHandler):
    """Writes records as JSON lines. Every file is 0600 from the first instant."""

    def _open(self) -> TextIOWrapper:
        raw = FileIO(self.baseFilename, "ab", opener=open_own)
        return TextIOWrapper(BufferedWriter(raw), encoding="utf-8")

    def format(self, record: logging.LogRecord) -> str:
        """One line. `said` is the text with its values, `template` without them: only the latter goes into a bundle."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "line": record.lineno,
            "template": str(record.msg),
            "said": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _error(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def open_log(home: SiteHome, rule: LogRule) -> SiteLog:
    """The handler that writes the log of `home`, to be added to a logger and closed by the caller.

    Raises StoreError if the file cannot be written.
    """
    path = log_file(home)
    with explained("write the log", path):
        handler = SiteLog(path, maxBytes=max(1, int(rule.megabytes * 1e6)), backupCount=rule.files)
    handler.setLevel(rule.level.upper())
    return handler


def log_file(home: SiteHome) -> Path:
    """The newest file; older ones have `.1`, `.2`, … behind their name."""
    return home.log / "client.jsonl"


def _error(error: BaseException) -> dict[str, Any]:
    """The kind of an error and where it came from, apart from its text, which may tell of rows."""
    frames: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame
        frames.append(f"{code.f_globals.get('__name__', '?')}:{trace.tb_lineno} {code.f_code.co_name}")
        trace = trace.tb_next
    cause = error.__cause__
    return {
        "type": type(error).__name__,
        "text": str(error),
        "frames": frames,
        **({} if cause is None else {"cause": _error(cause)}),
    }
