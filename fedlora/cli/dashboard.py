"""`fedlora dashboard`: recorded runs in a browser."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.output import stderr
from fedlora.errors import ExitCode


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("dashboard")(dashboard)


def dashboard(
    store: Annotated[Path, typer.Option(help="The folder of the run store.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0: any free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    build: Annotated[
        bool, typer.Option("--build", help="Only fetch the scripts that draw charts, if they are not there.")
    ] = False,
) -> int:
    """Show recorded runs in a browser on this machine, live while `fedlora simulate` writes; nothing can be changed."""
    if build:
        _build()
        return ExitCode.OK
    import webbrowser

    from fedlora.server.dashboard.local import local_dashboard

    try:
        with local_dashboard(store, port) as shown:
            typer.echo(shown.link)
            stderr().print("the link is good for one login; Ctrl-C ends the dashboard", markup=False)
            if open_browser:
                webbrowser.open(shown.page.as_uri())
            _until_asked_to_end()
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _until_asked_to_end() -> None:
    """Returns at Ctrl-C or SIGTERM. A wait without an end can miss a signal that comes as it begins."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(0.5):
        pass


def _build() -> None:
    from fedlora.server.dashboard.vendor import build

    stderr().print("fetched the charts' scripts" if build() else "the charts' scripts are there already", markup=False)
