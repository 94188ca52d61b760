"""The client daemon: connected, resident, restartable; it ends when its owner or its server says so."""

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from fedlora.client import controls
from fedlora.client.deployed import DeployedSite
from fedlora.client.handler import SiteHandler
from fedlora.client.health import health_server
from fedlora.client.home import SiteHome, joined, locked
from fedlora.client.identity import Credentials, credentials, renewed
from fedlora.errors import FedloraError, IdentityError
from fedlora.identity.keys import certificate_facts
from fedlora.link.answers import AnswerBox
from fedlora.link.client import OPTIONS, LinkClient
from fedlora.link.diagnose import diagnose
from fedlora.service_manager import Watchdog, notify

log = logging.getLogger(__name__)

STATUS_SECONDS = 2.0
RENEW_BEFORE = timedelta(days=30)
RENEW_SECONDS = 3600.0
DIAGNOSE_SECONDS = 60.0


@dataclass
class Daemon:
    """A running client. health: "host:port" of its health endpoint, or None."""

    home: SiteHome
    server: str
    health: str | None = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def run(self) -> None:
        """Until SIGTERM or Ctrl-C. Raises IdentityError if the server turns the client away."""
        handler = SiteHandler(DeployedSite(self.home, self.server), secrets.token_hex(8))
        link = LinkClient(self._dial, handler, AnswerBox(self.home.state / "answers"))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stopper(link))
        watchdog = Watchdog()
        watchdog.start()
        notify("READY=1")
        beside = [
            asyncio.create_task(self._report(link, handler, watchdog)),
            asyncio.create_task(self._renew()),
            asyncio.create_task(self._diagnose(link)),
        ]
        try:
            async with health_server(self.health, lambda: link.connected_since is not None):
                await link.run()
        finally:
            notify("STOPPING=1")
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self._note(link, handler)

    def _dial(self) -> Any:
        """A channel with the certificate as it is now: it may have been renewed."""
        found = credentials(self.home)
        secure = grpc.ssl_channel_credentials(found.authority, found.key, found.certificate)
        return grpc.aio.secure_channel(self.server, secure, options=OPTIONS)

    async def _report(self, link: LinkClient, handler: SiteHandler, watchdog: Watchdog) -> None:
        while True:
            watchdog.alive()
            await asyncio.to_thread(self._note, link, handler)
            await asyncio.sleep(STATUS_SECONDS)

    def _note(self, link: LinkClient, handler: SiteHandler) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        status = controls.Status(
            pid=os.getpid(),
            since=self.began.isoformat(timespec="seconds"),
            server=self.server,
            connected=link.connected_since is not None,
            work=handler.doing,
            last_error=link.last_error,
            updated_at=now,
            told=handler.told,
        )
        try:
            controls.write_status(self.home, status)
        except FedloraError as error:
            log.warning("the status cannot be written: %s", error)

    async def _renew(self) -> None:
        """Asks for a new certificate in the last month of the old one."""
        while True:
            facts = certificate_facts(credentials(self.home).certificate)
            if facts.not_after - datetime.now(UTC) < RENEW_BEFORE:
                try:
                    await asyncio.to_thread(renewed, self.home, self.server)
                except FedloraError as error:
                    log.warning("the certificate cannot be renewed now: %s", error)
            await asyncio.sleep(RENEW_SECONDS)

    async def _diagnose(self, link: LinkClient) -> None:
        """Says now and then why there is no connection."""
        while True:
            await asyncio.sleep(DIAGNOSE_SECONDS / 6)
            if link.connected_since is None and link.last_error:
                authority = credentials(self.home).authority
                log.warning("%s", await asyncio.to_thread(diagnose, self.server, authority))
                await asyncio.sleep(DIAGNOSE_SECONDS)


def _stopper(link: LinkClient) -> Callable[[], None]:
    """The first signal lets the work in hand be finished and sent; the second ends the process."""
    asked: list[bool] = []

    def stop() -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        log.info("stopping: the work in hand is finished first; ask again to stop at once")
        link.stop()

    return stop


def run_daemon(home: SiteHome, *, health: str | None = None) -> None:
    """Runs the client of `home`.

    Raises IdentityError if it has not joined a server, or the server turns it away; StoreError if another daemon has
    the home; PolicyError.
    """
    server = joined(home)
    if server is None:
        raise IdentityError(f"{home.folder} has joined no server: `fedlora client join --token TOKEN --home …`")
    with locked(home):
        _ = DeployedSite(home, server).policy  # mistakes are told before anything else
        _check(credentials(home))
        asyncio.run(Daemon(home, server, health).run())


def _check(found: Credentials) -> None:
    facts = certificate_facts(found.certificate)
    if facts.not_after <= datetime.now(UTC):
        raise IdentityError(
            f"this client's certificate ended on {facts.not_after:%Y-%m-%d}: ask the server's operator for a token"
            f" (`fedlora server enroll {facts.name} --again`) and join anew"
        )
