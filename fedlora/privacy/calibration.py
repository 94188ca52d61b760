"""The noise for an ε, found once and remembered on disk: a PLD calibration takes seconds."""

import json
from collections.abc import Sequence
from pathlib import Path

from fedlora.data.cache import cache_dir, disk_errors, exclusive
from fedlora.errors import AssetError
from fedlora.privacy.accounting import Release, calibrate, epsilon
from fedlora.server.durable import replace_synced

_FILE = "calibration.json"


def calibrated_noise(
    target: float, delta: float, rate: float, steps: int, accountant: str, beside: Sequence[Release] = ()
) -> float:
    """See `fedlora.privacy.accounting.calibrate`. A remembered noise is checked by the accountant before it is used.

    Raises PrivacyError if no noise keeps `target`.
    """
    key = json.dumps([target, delta, rate, steps, accountant, [[r.noise_multiplier, r.rate, r.steps] for r in beside]])
    path = cache_dir() / _FILE
    known = _read(path).get(key)
    if known is not None and epsilon([Release(known, rate, steps), *beside], delta, accountant) <= target:
        return known
    noise = calibrate(target, delta, rate, steps, accountant, beside)
    _remember(path, key, noise)
    return noise


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text())
        return {str(key): float(value) for key, value in found.items() if float(value) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(path: Path, key: str, noise: float) -> None:
    """A cache that cannot be written costs the next run its seconds, not this one."""
    try:
        with disk_errors(path.parent, 4096):
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(path.with_suffix(".lock")):
                replace_synced(path, json.dumps({**_read(path), key: noise}, indent=0).encode())
    except AssetError:
        return
