"""A site that was enrolled and lies: each round another way, over a connection of its own, as a process of its own.

    python -m tests.e2e.malicious HOME PORT        HOME: of a site that has joined; PORT: of the server's link

A line of JSON is printed for each round when it is over: {"round": 3, "said": "what the server answered"}.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.client.home import SiteHome
from fedlora.client.identity import credentials
from fedlora.link import content
from fedlora.link.v1.link_pb2 import Content, Decline, FromClient, Offer
from fedlora.wire import read_manifest
from tests.link.raw import Raw, announced, answer, chunks, hello, upload

PATIENCE = 60.0
NUMBER = 3
"""Its number among the run's sites."""

ESCAPES = "\x1b[2J\x1b]0;owned\x07not\ntoday\r\u202eyadot"
"""A terminal would be cleared and renamed, a log would have a line more, and a reader would read backwards."""


@dataclass(frozen=True)
class Authority:
    """The server's."""

    certificate: bytes


@dataclass(frozen=True)
class Server:
    """Where the server is."""

    port: int
    authority: Authority


@dataclass
class Liar:
    """Its connection, and the bytes that it has sent before, by round."""

    server: Server
    shown: tuple[bytes, bytes]
    sent: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    line: Raw | None = None

    def connect(self) -> Raw:
        """Anew; the old line is dropped."""
        if self.line is not None:
            self.line.hang_up()
        self.line = Raw(self.server, f"site-{NUMBER}", shown=self.shown, answers=True)
        self.line.say(hello())
        self.line.hear("welcome", PATIENCE)
        return self.line

    def run(self, lies: "Mapping[int, Lie]") -> None:
        """Lies in each round, then hangs up."""
        line = self.connect()
        for number, lie in lies.items():
            offer = line.hear("offer", PATIENCE)
            while offer.round != number:  # what was offered again at a new connection is an old story
                offer = line.hear("offer", PATIENCE)
            said = lie(self, offer)
            print(json.dumps({"round": number, "said": said}), flush=True)
            line = self.line or line
        line.hang_up()

    def upload(self, offer: Offer, data: bytes) -> str:
        """Sends an answer as an honest client does, and keeps it for later."""
        line = self.line or self.connect()
        self.sent[offer.round] = (offer.work, data)
        upload(line, offer.work, data)
        return told(line)


Lie = Callable[[Liar, Offer], str]


def told(line: Raw) -> str:
    """What the server says of an answer."""
    said = line.hear("acknowledged", PATIENCE)
    return "taken" if said.counted else f"not taken: {said.reason}"


def tensors(offer: Offer, value: float = 0.01) -> dict[str, Any]:
    """What an honest answer would have: all that travels, as the manifest says."""
    (task,) = [values for values in offer.facts.configs if values.name == "task"]
    (text,) = [value.text for value in task.values if value.name == "manifest"]
    manifest = read_manifest(text)
    return {name: np.full(manifest.tensors[name].shape, value, np.float32) for name in manifest.uploaded()}


def plausible(offer: Offer, **changes: Any) -> bytes:
    """An answer that would be admitted, but for the changes."""
    return answer(offer, NUMBER, **{"tensors": tensors(offer), "samples": 20, **changes})


def wrong_shapes(liar: Liar, offer: Offer) -> str:
    """Each tensor with one row more."""
    larger = {
        name: np.zeros((array.shape[0] + 1, *array.shape[1:]), np.float32) for name, array in tensors(offer).items()
    }
    return liar.upload(offer, plausible(offer, tensors=larger))


def no_numbers(liar: Liar, offer: Offer) -> str:
    """NaN in every place, and in what it measured."""
    metrics = {"seconds": math.nan, "loss": math.inf}
    return liar.upload(offer, plausible(offer, tensors=tensors(offer, math.nan), metrics=metrics))


def a_trillion_rows(liar: Liar, offer: Offer) -> str:
    """So that its update would be all that counts."""
    return liar.upload(offer, plausible(offer, samples=10**12))


def replayed(liar: Liar, offer: Offer) -> str:
    """The bytes of a round before: to their own work, which is over, and as an answer to this one."""
    line = liar.line or liar.connect()
    work, data = liar.sent[offer.round - 1]
    line.say(announced(work, data))
    first = told(line)
    upload(line, offer.work, data)
    return f"{first}; {told(line)}"


def twice(liar: Liar, offer: Offer) -> str:
    """An answer with a tensor twice; then another one, which would be admitted, in its place; then the first again."""
    found = Content.FromString(plausible(offer))
    found.arrays[0].tensors.append(found.arrays[0].tensors[0])
    bad, good = content.serialised(found), plausible(offer)
    line = liar.line or liar.connect()
    upload(line, offer.work, bad)
    said = [told(line)]
    for data in (good, bad):
        line.say(announced(offer.work, data), *chunks(offer.work, data))
        said.append(told(line))
    return "; ".join(said)


def garbage(liar: Liar, offer: Offer) -> str:
    """Bytes that are no frame; and, when it has come back, an answer that is none."""
    line = liar.line or liar.connect()
    line.say(b"\xff" * 4096)
    ended = line.ended(PATIENCE)
    again = liar.connect().hear("offer", PATIENCE)
    return f"{ended}; {liar.upload(again, bytes(range(255, 0, -1)) * 8)}"


def one_missing(liar: Liar, offer: Offer) -> str:
    """All tensors but one."""
    rest = dict(list(tensors(offer).items())[1:])
    return liar.upload(offer, plausible(offer, tensors=rest))


def escapes(liar: Liar, offer: Offer) -> str:
    """Says no in a way that would harm whoever reads it."""
    (liar.line or liar.connect()).say(FromClient(decline=Decline(work=offer.work, reason=ESCAPES * 100)))
    return "said no"


def too_large(liar: Liar, offer: Offer) -> str:
    """Announces a terabyte, is shut out, and stays away."""
    line = liar.line or liar.connect()
    line.say(announced(offer.work, b"", size=10**12))
    return line.ended(PATIENCE)


LIES: dict[int, Lie] = {
    1: wrong_shapes,
    2: no_numbers,
    3: a_trillion_rows,
    4: replayed,
    5: twice,
    6: garbage,
    7: one_missing,
    8: escapes,
    9: too_large,
}


def main() -> None:
    """The command."""
    home, port = SiteHome.open(Path(sys.argv[1])), int(sys.argv[2])
    found = credentials(home)
    Liar(Server(port, Authority(found.authority)), (found.key, found.certificate)).run(LIES)


if __name__ == "__main__":
    main()
