"""What was measured of this machine's arithmetic: once, and kept in the cache, so that a machine keeps its bits."""

import functools
import json
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fedlora.data.cache import cache_dir

FILE = "arithmetic.json"


@dataclass(frozen=True)
class Verdicts:
    """Answers to questions about this machine, by question, processor and torch version, in a file."""

    file: Path

    def answer(self, question: str, measure: Callable[[], str], allowed: tuple[str, ...]) -> str:
        """The answer that is kept; else `measure` gives it, one of `allowed`, and it is kept if it can be.

        Without a cache it is measured again by the next process.
        """
        key = f"{question}: {_machine()}"
        found = self._read().get(key)
        if found in allowed:
            return found
        measured = measure()
        with suppress(OSError):
            self._write({**self._read(), key: measured})
        return measured

    def _read(self) -> dict[str, str]:
        """What is kept; a file that is not there or not ours says nothing."""
        try:
            found = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: value for key, value in found.items() if isinstance(value, str)}

    def _write(self, known: dict[str, str]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.file.parent, delete=False) as draft:
            json.dump(known, draft, indent=1)
        Path(draft.name).replace(self.file)


def verdicts() -> Verdicts:
    """Those in the cache folder."""
    return Verdicts(cache_dir() / FILE)


@functools.cache
def _machine() -> str:
    return " ".join((platform.machine(), _processor(), "torch", torch.__version__))


def _processor() -> str:
    """Its name; on Linux `platform.processor` often knows none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model\t", "CPU implementer", "CPU part")
    return ",".join(dict.fromkeys(line.partition(":")[2].strip() for line in lines if line.startswith(wanted)))
