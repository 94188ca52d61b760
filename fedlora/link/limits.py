"""How much either side takes from the other, and how long it waits. Sizes in bytes, times in seconds."""

PROTOCOL = 1
"""The version of `fedlora.v1` that this package speaks. Client and server of another one refuse each other."""

CHUNK = 512 * 1024
"""Of arrays, in one frame."""

FRAME = 8 * 1024 * 1024
"""One frame from a server: an offer holds a manifest, which grows with the base model's modules."""

CLIENT_FRAME = CHUNK + 64 * 1024
"""One frame from a client: a chunk, or a few short texts."""

TEXT = 1000
"""Characters of a reason, a name or a version that are kept."""

DATA_SETS = 100
"""Data sets that a client may name."""

ANSWER_SLACK = 1024 * 1024
"""What an answer may take beyond the tensors of the manifest: metrics, and the frames around each tensor."""

TENSOR_SLACK = 1024
"""What one tensor may take beyond its values: name and headers."""

HEARTBEAT = 10.0
SILENCE = 3.5
"""Heartbeats without which the other side counts as gone."""

HELLO = 15.0
"""For the first frame of a connection."""

FRAMES_A_MINUTE = 6000
"""From one client, chunks of an expected upload apart. Beyond it the connection is closed."""

REFUSALS = 5
"""Times that a client may break the protocol within `REFUSAL_WINDOW`; then its connections are turned away."""
REFUSAL_WINDOW = 300.0

BACKOFF = (0.2, 20.0)
"""A client's first wait before it dials again, and its longest; each is drawn between half and all of it."""
