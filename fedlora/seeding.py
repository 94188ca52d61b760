"""Random streams that are the same on every machine and need no state to be saved.

Every draw in fedlora comes from a stream that is named by what it is for: the run's seed, a purpose, and where it
matters a round and a client. Nothing depends on what was drawn before, so a resumed run draws what an
unbroken one would have, in any order of clients.

Only the raw output of the Philox bit generator is used where values must agree across hosts: NumPy guarantees that
stream, not those of its distributions (NEP 19).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def stream_key(seed: int, *purpose: str | int) -> int:
    """A 128-bit key for the stream of `purpose`; different purposes give unrelated keys."""
    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for `purpose`, e.g. `stream(seed, "cohort", round)`."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, *purpose)))


def torch_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for `torch.manual_seed`, for what torch draws by itself (dropout)."""
    return stream_key(seed, *purpose) >> 65


def portable_uniform(
    shape: tuple[int, ...], low: float, high: float, seed: int, *purpose: str | int
) -> NDArray[np.float64]:
    """Uniform numbers in [low, high) that every host computes bit for bit alike.

    Returns a float64 array of `shape`, made from the top 53 bits of each raw Philox word.
    """
    bits = np.random.Philox(key=stream_key(seed, *purpose)).random_raw(int(np.prod(shape)))
    unit = (np.asarray(bits, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (low + (high - low) * unit).reshape(shape)
