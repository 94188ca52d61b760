"""A policy that allows one run exactly, and that run: whatever is changed, one thing is too much."""

from datetime import datetime
from typing import Any

from fedlora.client.policy import Policy
from fedlora.client.policy_check import Asked

DIGEST = "ab" * 32
HIDDEN = "/srv/patients/of-dr-who.csv"
NIGHT = datetime(2031, 5, 1, 23, 30)

ALLOWS: dict[str, Any] = {
    "servers": ["fl.example.org:8443"],
    "models": {"tiny": {"source": "local", "path": "/srv/models/tiny", "sha256": DIGEST}},
    "data": {
        "notes": {
            "source": "local",
            "path": HIDDEN,
            "columns": {"text": "report", "label": "code"},
            "labels": ["benign", "malign"],
            "nominal_size": 1200,
            "budget": "clinic",
            "units": ["patient"],
            "tasks": ["text_classification"],
        },
    },
    "tasks": ["text_classification", "causal_lm"],
    "strategies": ["fedavg", "fed_sb"],
    "privacy": {"require": "dp", "epsilon_run": 3.0, "delta": 1e-5, "unit": "patient"},
    "rounds_max": 20,
    "steps_max": 10,
    "batch_max": 32,
    "hours": ["20:00-06:00"],
    "metrics": ["loss", "holdout_accuracy"],
    "approval": "first_run",
}


def policy(**changes: Any) -> Policy:
    return Policy.model_validate({**ALLOWS, **changes})


def asked(**changes: Any) -> Asked:
    facts: dict[str, Any] = {
        "server": "fl.example.org:8443",
        "run": "20310501-120000-fedavg-1a2b",
        "kind": "train",
        "task": "text_classification",
        "strategy": "fedavg",
        "model": "tiny",
        "data": "notes",
        "columns": {"text": "text", "label": "label"},
        "labels": ("benign", "malign"),
        "privacy": "dp",
        "epsilon": 3.0,
        "delta": 1e-5,
        "unit": "patient",
        "rounds": 20,
        "steps": 10,
        "batch": 32,
        "base_digest": DIGEST,
    }
    return Asked(**{**facts, **changes})
