"""Where noise and sampling come from: the operating system's entropy, or for simulations a seeded stream."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.seeding import stream_key

_PIECE = 8192
"""Normal numbers that are made at a time: what they are made of stays in the processor's cache."""

Words = Callable[[int], NDArray[np.uint64]]
"""Gives that many independent uniform 64-bit words."""


@dataclass(frozen=True)
class RandomSource:
    """All draws of a private mechanism.

    private: whether nobody can know the draws. Only then does what is made of them carry a guarantee.
    """

    words: Words
    private: bool

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` numbers (k + ½)·2⁻⁵³ with k uniform in 0 … 2⁵³ − 1: never 0, never 1."""
        return _uniform(self.words(count))

    def normal(self, count: int) -> NDArray[np.float64]:
        """`count` standard normal numbers, each the sum of four by Box and Muller, halved.

        One Box-Muller number betrays its mantissa's gaps, and with them what it was added to (Mironov, CCS 2012). The
        sum of four does so only with a work that grows too fast to be done (Holohan and Braghin, arXiv 2107.10138; the
        form that Opacus's secure mode has). The four are of four pairs: the cosine and the sine of one angle add up to
        a single cosine. The result is still a double: add it in double precision and round the sum to single before it
        is released. That is a hardening, not a proof.
        """
        made = max(count, 2)  # a single number has no neighbour's sines
        words = self.words(4 * made).reshape(4, made)
        cosines, sines = np.empty(made), np.empty(made)
        for start in range(0, made, _PIECE):
            piece = slice(start, start + _PIECE)
            cosines[piece], sines[piece] = _two_pairs(words[:, piece])
        return ((cosines + np.roll(sines, 1)) / 2.0)[:count]

    def chosen(self, count: int, rate: float) -> NDArray[np.int64]:
        """Poisson sampling: each of 0 … count − 1 by itself with probability `rate`, in increasing order."""
        return np.flatnonzero(self.uniform(count) < rate)


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    found = (words >> np.uint64(11)).astype(np.float64)
    found += 0.5
    found *= 2.0**-53
    return found


def _two_pairs(words: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """In each column two pairs by Box and Muller: the sum of their cosines and of their sines, n each, variance 2.

    words: [4, n], two rows for radii, two for angles.
    """
    import torch  # its sine and cosine take a fifth of numpy's time

    uniform = torch.from_numpy(_uniform(words))
    radius, angle = uniform[:2].log_().mul_(-2.0).sqrt_(), uniform[2:].mul_(2.0 * np.pi)
    return (radius * angle.cos()).sum(dim=0).numpy(), (radius * angle.sin()).sum(dim=0).numpy()


def _system_words(count: int) -> NDArray[np.uint64]:
    """A key stream of AES-256 in counter mode. The system draws the key, for this call alone: seven times as fast."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(8 * count)), dtype=np.uint64)


def system_source() -> RandomSource:
    """The operating system's cryptographic generator, by a cipher that it keys anew for each draw.

    Nothing about it is kept or logged: no later draw can be known from an earlier one, nor an earlier from a later.
    """
    return RandomSource(_system_words, private=True)


def seeded_source(seed: int, *purpose: str | int) -> RandomSource:
    """A stream that the run's seed and `purpose` decide: for simulations and tests, without any guarantee."""
    generator = np.random.Philox(key=stream_key(seed, *purpose))
    return RandomSource(lambda count: np.asarray(generator.random_raw(count), dtype=np.uint64), private=False)
