"""What a daemon tells systemd (`Type=notify`, `WatchdogSec=`): one datagram a message. Without systemd, nothing."""

import os
import socket
import threading

_MICROSECONDS = 1_000_000


def notify(message: str) -> bool:
    """Sends e.g. "READY=1" or "STATUS=…" to the service manager; False if there is none (or it does not listen)."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return False
    address = "\0" + place[1:] if place.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), address)
    except OSError:
        return False
    return True


class Watchdog:
    """Says WATCHDOG=1 twice in each interval that systemd asks for, as long as `alive` is called in between.

    A daemon whose event loop hangs stops calling `alive`, and systemd starts it anew.
    """

    def __init__(self) -> None:
        self._interval = int(os.environ.get("WATCHDOG_USEC", "0")) / _MICROSECONDS
        self._alive = threading.Event()

    def start(self) -> None:
        """Begins, if systemd asks for it."""
        if self._interval > 0:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def alive(self) -> None:
        """The daemon works."""
        self._alive.set()

    def _run(self) -> None:
        while self._alive.wait():
            self._alive.clear()
            notify("WATCHDOG=1")
            threading.Event().wait(self._interval / 2)
