"""What a run's configuration says, read once: the store keeps it as text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedlora.server.records import RunInfo
from fedlora.server.views.model import Privacy

_PRIVACY: Mapping[str, Privacy] = {"dp": "local", "central": "central"}


@dataclass(frozen=True)
class Facts:
    """sites: names by client number; empty for virtual clients. every: rounds between measurements of the global model.
    timeout: seconds that a round may take, None: no limit.
    """

    sites: Sequence[str]
    privacy: Privacy
    delta: float | None
    timeout: float | None
    every: int
    metric: str

    def name(self, client: int) -> str:
        """Of a client: its site's, or its number where it is virtual."""
        return self.sites[client] if 0 <= client < len(self.sites) else str(client)


def facts(run: RunInfo) -> Facts:
    """Of `run`."""
    return _facts(run.config)


@lru_cache(maxsize=512)
def _facts(config: str) -> Facts:
    raw = config_of(config)
    federation, privacy = _part(raw, "federation"), _part(raw, "privacy")
    kind = _PRIVACY.get(str(privacy.get("name")), "none")
    return Facts(
        sites=tuple(map(str, federation.get("sites") or ())),
        privacy=kind,
        delta=None if kind == "none" else privacy.get("delta"),
        timeout=federation.get("timeout"),
        every=int(_part(raw, "eval").get("every") or 1),
        metric=_METRICS.get(str(_part(raw, "task").get("name")), "accuracy"),
    )


_METRICS = {"causal_lm": "token_accuracy"}
"""The main figure of a task where it is not its accuracy."""


def config_of(text: str) -> Mapping[str, Any]:
    """A stored configuration; an empty one where the text is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _part(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name)
    return found if isinstance(found, dict) else {}
