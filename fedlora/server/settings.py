"""The settings of a server daemon, in `server.yaml` in its home; `docs/operate.md` has the table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedlora.errors import ConfigError

FILE = "server.yaml"
Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$")]


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
        description="a SQLAlchemy URL, e.g. postgresql+psycopg://…; null: SQLite in the home. The environment's"
        " FEDLORA_DATABASE wins, so that a password need not stand here",
    )


def read_settings(home: Path, said: Mapping[str, str] | None = None) -> ServerSettings:
    """The settings in `home`, and the defaults for what is not there; `said` wins over both.

    Raises ConfigError with every mistake.
    """
    path = home / FILE
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        return ServerSettings.model_validate({**(plain or {}), **(said or {})})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    except ValidationError as error:
        raise ConfigError(
            [f"{path}: {'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        ) from error
