"""Readers that do to a dashboard's server what pages do, without a browser: a process for `benchmarks.dashboard`.

Its input is an order (a line of JSON: base, token, run, readers). It says "there" when all streams are open, and the
delays of the lines that it was told (seconds) when it hears a further line; then it ends.
"""

import asyncio
import contextlib
import json
import os
import ssl
import sys
import time
from datetime import datetime
from typing import Any

import httpx

from benchmarks.rounds_processes import hear, say

REST = 2.0
"""Seconds that a page rests between two looks at its run."""


class Reader:
    """One page: a stream, and a look at the run and its matrix after a commit."""

    def __init__(self, order: dict[str, Any]) -> None:
        trusting = ssl.create_default_context(cafile=order["authority"])
        self._http = httpx.AsyncClient(base_url=order["base"], verify=trusting, timeout=60, trust_env=False)
        self._run, self._token = order["run"], order["token"]
        self._committed = asyncio.Event()
        self.there = asyncio.Event()
        self.delays: list[float] = []

    async def live(self) -> None:
        """Until it is cancelled."""
        answer = await self._http.post("/login", data={"token": self._token}, headers=self._origin())
        answer.raise_for_status()
        await asyncio.gather(self._listen(), self._look())

    def _origin(self) -> dict[str, str]:
        return {"Origin": str(self._http.base_url).rstrip("/"), "Accept": "application/json"}

    async def _listen(self) -> None:
        async with self._http.stream("GET", f"/stream?run={self._run}", timeout=None) as answer:
            answer.raise_for_status()
            self.there.set()
            async for line in answer.aiter_lines():
                if line.startswith('data: {"event"'):
                    self._told(json.loads(line[6:]))

    def _told(self, event: dict[str, Any]) -> None:
        if "time" in event:
            self.delays.append(time.time() - datetime.fromisoformat(event["time"]).timestamp())
        if event["event"] == "round_committed":
            self._committed.set()

    async def _look(self) -> None:
        while True:
            await self._committed.wait()
            self._committed.clear()
            with contextlib.suppress(httpx.RemoteProtocolError):  # the server closed a connection that was kept idle
                (await self._http.get(f"/data/runs/{self._run}?matrix=1&spread=loss")).raise_for_status()
                await asyncio.sleep(REST)
                continue
            self._committed.set()


def step_aside() -> None:
    """This process, and those that it starts from now on, get the processor time that nobody else wants."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


async def read(order: dict[str, Any]) -> list[float]:
    """Reads until the parent says so."""
    if order["aside"]:
        step_aside()
    readers = [Reader(order) for _ in range(order["readers"])]
    tasks = [asyncio.create_task(reader.live()) for reader in readers]
    await asyncio.gather(*(reader.there.wait() for reader in readers))
    say("there")
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return [delay for reader in readers for delay in reader.delays]


if __name__ == "__main__":
    say(asyncio.run(read(hear())))
