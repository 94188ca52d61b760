"""How much either side takes from the other, and how long it waits. Sizes in bytes, times in seconds."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

PROTOCOL = 1
"""The version of `fedlora.v1` that this package speaks. Client and server of another one refuse each other."""

COUNTED = 20_000
"""Works of rounds that are over whose answers are known to have been counted, for clients that were not told."""

CHUNK = 512 * 1024
"""Of arrays, in one frame."""

FRAME = 8 * 1024 * 1024
"""One frame from a server: an offer holds a manifest, which grows with the base model's modules."""

CLIENT_FRAME = CHUNK + 64 * 1024
"""One frame from a client: a chunk, or a few short texts."""

TEXT = 1000
"""Characters of a reason, a name or a version that are kept."""

NAME = 500
"""Characters of the name of a record, a tensor or a value. Models name their modules in some hundred."""

METRICS = 200
"""Numbers that a client may tell of one work."""

FIELDS = 500_000
"""Fields of one content: 50,000 tensors have about as many."""

DATA_SETS = 100
"""Data sets that a client may name."""

DEVICE = 200
"""Characters of what a client tells of its device that are kept."""

POLICY_LINES = 20
"""Lines that a client may tell of its site's policy."""

POLICY_LINE = 600
"""Characters of one of them that are kept."""

ANSWER_SLACK = 1024 * 1024
"""What an answer may take beyond the tensors of the manifest: metrics, and the frames around each tensor."""

TENSOR_SLACK = 1024
"""What one tensor may take beyond its values: name and headers."""

HEARTBEAT = 10.0
SILENCE = 3.5
"""Heartbeats without which the other side counts as gone."""

HELLO = 15.0
"""For the first frame of a connection."""

GREETINGS = 4
"""Connections of one client that may be without a hello at a time."""

LAST_WORD = 2.0
"""For a frame that says why the connection ends; then it ends, whether that was read or not."""

STUCK = 5
"""Connections of one client that may be over but for a frame that it does not read. More are refused in a word."""

OUTGOING = 3 * FRAME
"""What may wait for one client: an offer or two, and chunks. Who does not read is not answered for ever."""

FRAME_OVERHEAD = 1024
"""What a frame takes in memory beyond its bytes."""

FRAMES_A_MINUTE = 6000
"""From one client, whole chunks of an expected upload apart. Beyond it the connection is closed."""

REQUESTS, REQUEST_WINDOW = 20, 300.0
"""Renewals and erasures that one client may ask for in that many seconds."""

REFUSALS = 5
"""Times that a client may break the protocol within `REFUSAL_WINDOW`; then its connections are turned away."""
REFUSAL_WINDOW = 300.0

BACKOFF = (0.2, 20.0)
"""A client's first wait before it dials again, and its longest; each is drawn between half and all of it."""

SETTLED = 1.0
"""A connection that was there for longer was a good one: when it breaks, the first wait comes again."""


def shown(text: str, most: int = TEXT) -> str:
    """A stranger's text as it may be stored and shown: cut, and with nothing in it that steers a terminal or a log."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])


class Recent:
    """How often something was noted of each name within `window` seconds; `most` of them are too many."""

    NAMES = 10_000
    """Names that are remembered; beyond them the oldest are forgotten."""

    def __init__(self, most: int, window: float, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._window, self._now = most, window, now
        self._of: OrderedDict[str, deque[float]] = OrderedDict()

    def too_many(self, name: str) -> bool:
        """Whether `name` has to wait."""
        recent = self._of.get(name, deque())
        while recent and self._now() - recent[0] > self._window:
            recent.popleft()
        return len(recent) >= self._most

    def note(self, name: str) -> None:
        """One more."""
        self._of.setdefault(name, deque(maxlen=self._most)).append(self._now())
        self._of.move_to_end(name)
        while len(self._of) > self.NAMES:
            self._of.popitem(last=False)


STALL = 600.0
"""Seconds after which a server's log says whom a round still waits for; and again each time as many have passed."""
