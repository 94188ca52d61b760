"""The server daemon: clients connect to its link, an operator queues runs, and it drives them one after another."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedlora.config.schema import RunConfig
from fedlora.errors import LinkError, RunError, StoreError
from fedlora.identity.authority import open_authority
from fedlora.identity.keys import certificate_facts, read_certificate
from fedlora.identity.records import ClientStatus
from fedlora.identity.registry import Registry
from fedlora.identity.tls import ServerFiles, ensure_server_certificate, server_files
from fedlora.link.enrolment import EnrolmentService, enrolment_server
from fedlora.link.grid import LinkGrid
from fedlora.link.host import LinkHost
from fedlora.link.inbox import FOLDER as INCOMING
from fedlora.link.inbox import Inbox
from fedlora.link.service import LinkService, link_server
from fedlora.server.alone import locked, only_server
from fedlora.server.certificates import server_credentials
from fedlora.server.dashboard.app import front
from fedlora.server.dashboard.serving import dashboard_of
from fedlora.server.erase import finish_erasures
from fedlora.server.events import Listener
from fedlora.server.metrics.live import scrape_of
from fedlora.server.open_files import raise_limit
from fedlora.server.operator.access import publish
from fedlora.server.operator.api import LOOPBACK, make_api
from fedlora.server.operator.serve import OperatorServer
from fedlora.server.operator.token import FILE as TOKEN
from fedlora.server.operator.token import make_token
from fedlora.server.queue import Driver, RunQueue, Stop
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.retention import forgetting
from fedlora.server.running import Server
from fedlora.server.settings import ServerSettings
from fedlora.server.store import RunStore
from fedlora.server.watch import watching
from fedlora.service_manager import Watchdog, notify
from fedlora.trackers.tracking import tracking

log = logging.getLogger(__name__)

RECEIPT_KEY = "receipt.key"
"""In the home: what signs receipts for clients' ledgers. Its public half is what a site may pin."""

OVER = (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED)
"""A run that is none of these goes on by itself, and needs the updates that it has."""

_REVOCATIONS = 5.0
"""Seconds between looks at who was revoked while connected."""


@contextmanager
def running(home: Path, settings: ServerSettings, *, database: str | None = None) -> Iterator[Server]:
    """A server whose link listens; nothing is driven yet.

    Raises IdentityError without an authority in `home`, StoreError, too if another server has the home or the database,
    and LinkError for an address that is taken.
    """
    raise_limit()
    files, url = server_files(home), database or settings.database
    authority = open_authority(files.authority)
    with ExitStack() as stack:
        stack.enter_context(locked(home))
        ensure_server_certificate(home, authority, _hosts(files, settings))
        stack.enter_context(only_server(url, files.runs))
        store = stack.enter_context(RunStore.open(files.runs, url=url))
        host = stack.enter_context(LinkHost())
        server = Server(files, settings, store, Registry(store.database), authority, host, RunQueue(store))
        for stop in host.call(_listen(server)):
            stack.callback(_stopping, host, stop)
        stack.callback(_revocations(server))
        stack.enter_context(watching(server.views))
        stack.enter_context(_operator(server))
        stack.enter_context(forgetting(store, settings))
        yield server


def _stopping(host: LinkHost, stop: Callable[[float], Any]) -> None:
    host.call(stop(1.0))


@contextmanager
def _operator(server: Server) -> Iterator[None]:
    """The operator's API and the dashboard, for the block."""
    home, settings = server.files.home, server.settings
    name, _, port = settings.operator.rpartition(":")
    facts = certificate_facts(read_certificate(server.files.certificate))
    token, hosts = make_token(home / TOKEN), (*LOOPBACK, *facts.hosts)
    app = make_api(
        server.queue,
        server.store,
        token,
        server.clients,
        prepare=server.prepare,
        hosts=hosts,
        metrics=scrape_of(home, server.store, server.registry, server.host),
        views=server.views,
    )
    both = front(app, dashboard_of(server, token, hosts, app.state.closing))
    with OperatorServer(both, name, int(port), server.files.certificate, server.files.key) as api:
        publish(home, api.url)
        yield


def _hosts(files: ServerFiles, settings: ServerSettings) -> Sequence[str]:
    known = certificate_facts(read_certificate(files.certificate)).hosts if files.certificate.exists() else ()
    return tuple(dict.fromkeys([*known, *settings.hosts, "localhost", "127.0.0.1"]))


async def _listen(server: Server) -> "list[Callable[[float], Any]]":
    """Opens the ports; returns what stops them."""
    service = LinkService(server.host.hub, server.doors())
    mutual = server_credentials(server.files, clients_show_theirs=True)
    opened = [_opened(lambda: link_server(service, mutual, server.settings.link), server.settings.link)]
    where = server.settings.enrolment
    if where is not None:
        one_way = server_credentials(server.files, clients_show_theirs=False)
        link = server.settings.link_address or f":{opened[0][1]}"
        service_of_strangers = EnrolmentService(server.join, link)
        opened.append(_opened(lambda: enrolment_server(service_of_strangers, one_way, where), where))
    for grpc_server, _ in opened:
        await grpc_server.start()
    return [grpc_server.stop for grpc_server, _ in opened]


def _opened(make: Callable[[], tuple[Any, int]], address: str) -> tuple[Any, int]:
    try:
        return make()
    except RuntimeError as error:
        raise LinkError(f"cannot listen at {address}: {error}. Is another server running there?") from error


def _revocations(server: Server) -> Callable[[], None]:
    """Ends connections of clients that are revoked while connected; returns what stops looking."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_REVOCATIONS):
            try:
                gone = {record.name for record in server.registry.clients() if record.status is ClientStatus.REVOKED}
            except StoreError as error:
                log.warning("revocations cannot be looked up now: %s", error)
                continue
            for name in gone & set(server.host.hub.connected()):
                server.host.call(_dismiss(server, name))

    thread = threading.Thread(target=look, name="revocations", daemon=True)
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join()

    return stop


async def _dismiss(server: Server, name: str) -> None:
    server.host.hub.dismiss(name, "this client's certificate was revoked: ask the server's operator")


def drive(server: Server, run: RunInfo, stop: Stop, listeners: Sequence[Listener]) -> None:
    """Runs one run to its end, a stop or an error; the store then knows which. Raises FedloraError."""
    from fedlora.simulations.simulate import Watch, resume  # loads torch

    config = RunConfig.model_validate_json(run.config)
    federation = config.federation
    sites = federation.sites
    if not sites:
        raise RunError(f"run {run.id} names no sites: submit it through `fedlora run start`")
    inbox = Inbox(run.folder)
    grid = LinkGrid(server.host, run.id, sites, inbox, federation.absence, enough=federation.cohort)
    try:
        resume(server.store, run, Watch(listeners, stop, key=server.files.home / RECEIPT_KEY), grid=grid)
    finally:
        if server.store.get(run.id).status in OVER:
            inbox.clear()
        finish_erasures(server.store)


def serve(server: Server, listeners: Sequence[Listener]) -> None:
    """Drives queued runs until SIGTERM or Ctrl-C: a round under way is given up, and run again at the next start."""
    finish_erasures(server.store)
    clear_leftovers(server.store)
    listeners = (*listeners, *tracking(server.settings.tracking))
    driver = Driver(server.queue, lambda run, stop: drive(server, run, stop, listeners))
    watchdog = Watchdog()
    watchdog.start()
    server.host.begin(_beat(watchdog))
    signal.signal(signal.SIGTERM, _stopper(driver))
    notify("READY=1")
    try:
        driver.run()
    finally:
        notify("STOPPING=1")


def clear_leftovers(store: RunStore) -> None:
    """Deletes single updates that a server left which died just when their run had ended."""
    for run in store.list():
        if run.status in OVER and (run.folder / INCOMING).is_dir():
            Inbox(run.folder).clear()


def _stopper(driver: Driver) -> Callable[[int, object], None]:
    def stop(number: int, frame: object) -> None:
        del number, frame
        driver.close()  # should a library, whose code this interrupts, make another error of what follows
        raise KeyboardInterrupt

    return stop


async def _beat(watchdog: Watchdog) -> None:
    import asyncio

    while True:
        watchdog.alive()
        await asyncio.sleep(1.0)
