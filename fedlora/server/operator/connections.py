"""Connections to the operator's port: how long one may take until it has asked something, how many an address has."""

import asyncio
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from fedlora.server.operator.exchange import Failures

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""Seconds within which the headers of a request must be there; also for what is sent after an answer has ended."""

GOODBYE_SECONDS = 0.5
"""Seconds that the other side of a connection that is owed no answer has to say goodbye when the server ends."""

PER_ADDRESS = 128
"""Connections that one address may have at a time; a browser has six."""

_told = Failures(limit=1)


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, which waits for ever for somebody who sends headers a byte at a time, with an end to it.

    While an answer is under way, an event stream too, no time runs here.
    """

    _timer: asyncio.TimerHandle | None = None
    _is_ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends. TLS waits for a goodbye, which somebody who keeps a connection for later does not say."""
        super().shutdown()
        self._is_ending = True
        self._end()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_ending:
            self._end()

    def _end(self) -> None:
        """Waits half a second for a goodbye, once all of the last answer has been sent."""
        if self._is_answering() or self.transport.get_write_buffer_size():
            self.loop.call_later(GOODBYE_SECONDS, self._end)
        else:
            self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        """The time begins with the first look at a connection that is owed no answer, and not anew with each byte."""
        if self._is_answering() or self.transport.is_closing():
            self._stop_watching()
        elif self._timer is None:
            self._timer = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self._is_answering():
            log.debug("%s asked nothing within %g seconds", self._address(), REQUEST_SECONDS)
            self.transport.abort()  # TLS would wait for a goodbye

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _is_one_too_many(self) -> bool:
        address = self._address()
        if address is None:
            return False
        same = [one for one in self.connections if isinstance(one, BoundedProtocol) and one._address() == address]
        if len(same) > PER_ADDRESS and _told.add(address):
            log.warning("%s has over %d connections: further ones are not taken", address, PER_ADDRESS)
        return len(same) > PER_ADDRESS

    def _address(self) -> str | None:
        return None if self.client is None else self.client[0]
