"""`fedlora server run`: the daemon that clients connect to and operators queue runs with."""

import logging
import os
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.output import stderr
from fedlora.cli.server import HomeOption, server_app
from fedlora.errors import ExitCode

if TYPE_CHECKING:
    from fedlora.server.events import Event

DATABASE = "FEDLORA_DATABASE"
"""The environment variable with the database's URL: a password has no place on a command line."""


def register(app: typer.Typer) -> None:
    """Adds the command to `fedlora server`."""
    del app
    server_app.command("run")(run)


def run(
    home: HomeOption,
    link: Annotated[str | None, typer.Option(help="HOST:PORT for clients; else as in server.yaml.")] = None,
    enrolment: Annotated[str | None, typer.Option(help="HOST:PORT for new clients.")] = None,
    operator: Annotated[str | None, typer.Option(help="HOST:PORT of the operator's API.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> int:
    """Run the server: clients connect to it, runs are queued with `fedlora run`."""
    from fedlora.server.daemon import running, serve
    from fedlora.server.operator.token import FILE as TOKEN
    from fedlora.server.settings import read_settings

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    quiet_libraries()
    said = {"link": link, "enrolment": enrolment, "operator": operator}
    settings = read_settings(home, {name: value for name, value in said.items() if value is not None})
    try:
        with running(home, settings, database=os.environ.get(DATABASE)) as server:
            stderr().print(f"the server in {home} listens: clients {settings.link}, operator {settings.operator}")
            stderr().print(
                f"the dashboard is at https://{settings.operator}/: log in with the text in {home / TOKEN}, as an"
                " admin; `fedlora server access add` lets others in",
                markup=False,
                soft_wrap=True,
            )
            serve(server, (log_event,))
    except KeyboardInterrupt:
        return ExitCode.OK
    return ExitCode.OK


def log_event(event: "Event") -> None:
    """One line for each event."""
    from fedlora.server.events import to_json

    logging.getLogger("fedlora.run").info("%s", to_json(event))


def quiet_libraries() -> None:
    """Libraries log what nobody asked for."""
    for name in ("flwr", "httpx", "httpcore", "uvicorn.access", "datasets", "urllib3", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
