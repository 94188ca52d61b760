"""The event loop of a server's link, in a thread of its own; the rest of the server calls into it and waits."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from fedlora.link.hub import Hub

T = TypeVar("T")


class LinkHost:
    """A hub in a running event loop. Use as a context manager; `call` and `begin` may come from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self.hub: Hub

    def __enter__(self) -> "LinkHost":
        self._thread.start()
        self.hub = self.call(_make_hub())
        return self

    def __exit__(self, *error: object) -> None:
        self.call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Starts `work` in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` in the loop and waits for what it gives or raises."""
        return self.begin(work).result()


async def _make_hub() -> Hub:
    return Hub()


async def _cancel_all() -> None:
    """Ends what still runs in the loop, so that it closes without a word."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
