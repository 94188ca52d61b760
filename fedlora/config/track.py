"""Where else a run's figures go: the keys of `track`, and which of these trackers are installed here."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from fedlora.config.section import Name, Section

Tracker = Literal["tensorboard", "mlflow", "wandb"]


class TrackConfig(Section):
    """Where else a run's figures go, as its rounds are committed. The server alone writes there."""

    to: tuple[Tracker, ...] = Field((), description="trackers; each needs the extra of its name")
    project: Name = Field("fedlora", description="MLflow's experiment, Weights & Biases' project")
    mlflow: str | None = Field(
        None,
        description="MLflow's tracking URI, without a password; null: MLFLOW_TRACKING_URI, else mlflow.db in the store",
    )
    wandb: Literal["offline", "online"] = Field(
        "offline", description="offline: into the run's folder, for `wandb sync`; online: to the service too"
    )

    @field_validator("mlflow")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is not None:
            check_uri(uri)
        return uri

    @field_validator("to")
    @classmethod
    def _check_once(cls, to: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        return each_once(to)


def each_once(to: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
    """`to`. Raises ValueError if a tracker is named twice: it would write everything twice."""
    if len(set(to)) < len(to):
        raise ValueError("a tracker is named twice: name each once")
    return to


def check_uri(uri: str) -> None:
    """Raises ValueError for a tracking URI that holds a password: it would be kept with the run, and shown with it."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        raise ValueError("this is no URI") from None
    if password is not None:
        raise ValueError(
            "the URI holds a password, and the configuration is kept with the run: leave it out and set"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole URI as MLFLOW_TRACKING_URI"
        )


def missing(trackers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those of `trackers` that are not installed here, each with a sentence that says what to install.

    Nothing of them is imported. A folder of that name (`wandb/`, say) is none.
    """
    for name in trackers:
        found = find_spec(name)
        if found is None or found.origin is None:
            yield name, f"{name} is not installed: pip install 'fedlora[{name}]', or leave it out"
