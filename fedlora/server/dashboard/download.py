"""What a run leaves: the adapter of any committed round as a zip file, and the report as a page."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from fedlora.errors import FedloraError, RunError, UnknownRunError
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.data import WHY, sight
from fedlora.server.dashboard.people import Role
from fedlora.server.dashboard.refusals import failed
from fedlora.server.dashboard.render import failure
from fedlora.server.dashboard.routes import Route
from fedlora.server.operator.archive import zipped
from fedlora.server.records import RunInfo

PATIENCE = 300.0
"""Seconds that an export may take: libraries are loaded, and perhaps a tokenizer."""
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""A report is one page with its style inside and no script; sandboxed, it could run none."""
REPORT = ".dashboard-report.html"
"""In a run's folder: the report of a run that may go on."""

_turn = threading.Lock()  # one at a time: each takes a core and much memory
Export = Callable[[Path, int, Path], None]


def export_apart(folder: Path, wanted: int, output: Path) -> None:
    """Exports in a process of its own. Raises RunError."""
    module = "fedlora.server.dashboard.export_round"
    command = [sys.executable, "-m", module, str(folder), str(wanted), str(output)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(
            f"the export of round {wanted} did not end within {PATIENCE:.0f} s ({error}): try again"
        ) from error
    if done.returncode:
        raise RunError(f"round {wanted} could not be exported: {done.stderr.strip()[-500:]}")


def adapter(request: Request) -> Response:
    """GET /runs/{id}/adapter/{round}.zip: exported at the first call, then kept in the run's folder."""
    context: Context = request.app.state.context
    try:
        run = context.store.get(request.path_params["run_id"])
        folder = exported(context, run, _round(request.path_params["round"]))
    except FedloraError as error:
        return failed(request, error)
    name = f"{run.id}-{folder.name}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(_pieces(folder), media_type="application/zip", headers=headers)


def exported(context: Context, run: RunInfo, wanted: int, export: Export = export_apart) -> Path:
    """The folder with the PEFT checkpoint of a committed round. Raises UnknownRunError if it is not committed."""
    last = context.store.last_round(run)
    if last is None or not 0 <= wanted <= last:
        committed = "none is committed" if last is None else f"rounds 0 to {last} are committed"
        raise UnknownRunError(f"run {run.id} has no round {wanted} to download: {committed}")
    folder = run.folder / f"adapter-round-{wanted}"
    with _turn:
        if not folder.is_dir():
            export(run.folder, wanted, folder)
    return folder


def report(request: Request) -> Response:
    """GET /runs/{id}/report: the report of `fedlora report`, as the run stands now. It has rosters in it."""
    context: Context = request.app.state.context
    try:
        run = context.store.get(request.path_params["run_id"])
        if not sight(request, run.id):
            return failure(request, 403, "This report is the operator's", WHY)
        path = written(context, run)
    except FedloraError as error:
        return failed(request, error)
    headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


def written(context: Context, run: RunInfo) -> Path:
    """The page: that of the run's end, or one of this moment."""
    from fedlora.simulations.report import write_report

    final = run.folder / "report.html"
    if run.finished_at is not None and final.is_file() and final.stat().st_mtime >= run.finished_at.timestamp():
        return final
    with _turn:
        return write_report(context.store.history(run), run.folder / REPORT)


def _pieces(folder: Path) -> Iterator[bytes]:
    """A link could lead out of the folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    yield from (piece for piece in zipped(files, folder) if piece)


def _round(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise UnknownRunError(f"there is no round {text[:40]!r}")
    return int(text)


ROUTES = (
    Route("GET", "/runs/{run_id}/adapter/{round}.zip", Role.VIEWER, adapter),
    Route("GET", "/runs/{run_id}/report", Role.VIEWER, report),
)
