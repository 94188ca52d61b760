"""The settings of a server daemon, in `server.yaml` in its home; `docs/operate.md` has the table."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo, field_validator

from fedlora.config.section import Name
from fedlora.config.track import TrackConfig, Tracker, check_uri, each_once, missing
from fedlora.errors import ConfigError

FILE = "server.yaml"
DATABASE_VARIABLE = "FEDLORA_DATABASE"
"""The environment variable with the database's URL: a password has no place on a command line."""

MOST_DAYS = 36_500
"""The longest retention time."""

Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$")]
Days = Annotated[int, Field(strict=True, ge=0, le=MOST_DAYS)]


class ServerSettings(BaseModel):
    """Where a server listens, and what it keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: Address = Field("0.0.0.0:7443", description="where clients connect, with their certificates")
    enrolment: Address | None = Field(
        "0.0.0.0:7444", description="where new clients join with a one-time token; null: nowhere"
    )
    link_address: str | None = Field(
        None,
        description="`host:port` at which clients reach the link, told to them when they join; null: the port of `link`"
        " at the host at which they joined",
    )
    operator: Address = Field(
        "127.0.0.1:7445", description="where the operator's API listens (HTTPS, bearer token in operator.token)"
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="names and addresses under which clients reach the server, for its certificate; added to those"
        " that `fedlora ca init` was given",
    )
    database: str | None = Field(
        None,
        repr=False,
        description="a SQLAlchemy URL, e.g. postgresql+psycopg://…; null: SQLite in the home. The environment's"
        " FEDLORA_DATABASE wins, so that a password need not stand here",
    )
    track: tuple[Tracker, ...] = Field(
        (), description="where else runs' figures go as they come: tensorboard, mlflow, wandb; see trackers.md"
    )
    track_project: Name = Field("fedlora", description="MLflow's experiment, Weights & Biases' project")
    track_mlflow: str | None = Field(
        None, description="MLflow's tracking URI; null: MLFLOW_TRACKING_URI, else mlflow.db beside the runs"
    )
    track_wandb: Literal["offline", "online"] = Field("offline", description="online: figures go to the service too")
    keep_rosters_days: Days | None = Field(
        None,
        description="days after a run's end for which the server keeps who took part in each round, with reasons and"
        " figures; null: for ever",
    )
    keep_events_days: Days | None = Field(
        None,
        description="days after a run's end for which its event log tells of single clients; null: as long as rosters",
    )
    keep_audit_days: Days | None = Field(
        365,
        description="days for which the dashboard's audit log keeps who did what, and from where; null: for ever",
    )

    @property
    def tracking(self) -> TrackConfig:
        """Where runs' figures go."""
        where = {"to": self.track, "project": self.track_project, "mlflow": self.track_mlflow}
        return TrackConfig.model_validate({**where, "wandb": self.track_wandb})

    @field_validator("track")
    @classmethod
    def _check_trackers(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        problems = [problem for _, problem in missing(trackers)]
        if problems:
            raise ValueError("; ".join(problems))
        return each_once(trackers)

    @field_validator("track_mlflow")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is not None:
            check_uri(uri)
        return uri

    @field_validator("keep_events_days")
    @classmethod
    def _check_events(cls, events: int | None, info: ValidationInfo) -> int | None:
        rosters = info.data.get("keep_rosters_days")
        if events is not None and rosters is not None and events > rosters:
            raise ValueError(
                f"{events} days are more than the {rosters} of keep_rosters_days: the events repeat the rosters, and go"
                " with them; give less, or null"
            )
        return events


def read_settings(home: Path, said: Mapping[str, str] | None = None) -> ServerSettings:
    """The settings in `home`, and the defaults for what is not there; `said` wins over both.

    Raises ConfigError with every mistake.
    """
    path = home / FILE
    plain = _read(path)
    try:
        return ServerSettings.model_validate({**plain, **(said or {})})
    except ValidationError as error:
        raise ConfigError([f"{path}: {_told(found)}" for found in error.errors()]) from None  # it repeats passwords


def database_of(home: Path) -> str | None:
    """The URL of the database of the server in `home`: the environment's, else the settings'; None: SQLite there.

    Raises ConfigError as `read_settings` does.
    """
    return os.environ.get(DATABASE_VARIABLE) or read_settings(home).database


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path} cannot be read: {_place(error)}"]) from None
    if not isinstance(plain, dict | None):
        raise ConfigError([f"{path} holds no settings: write one `key: value` in each line"])
    return {str(key): value for key, value in (plain or {}).items()}


def _place(error: Exception) -> str:
    """What is wrong with a file, and where; a YAML error would repeat the line, and with it maybe a password."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return getattr(error, "strerror", None) or type(error).__name__
    return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'it is no YAML'}"


def _told(found: Any) -> str:
    key = ".".join(map(str, found["loc"]))
    if found["type"] != "extra_forbidden":
        return f"{key}: {found['msg']}"
    near = difflib.get_close_matches(key, ServerSettings.model_fields, n=1)
    return f"{key}: there is no such setting" + (f"; did you mean {near[0]!r}?" if near else "")
