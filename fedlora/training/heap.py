"""How a simulation's process keeps its memory: what one step gives back, the next one takes, in large pages.

As it comes, the GNU C library hands the memory of large arrays back to the system at once, and each step has the system
clear thousands of pages for it anew; and pages of 4 kB make a processor look up addresses again and again. Both cost a
few per cent of a training step. Daemons, which wait most of their time, give memory back as ever.
"""

import ctypes
import mmap
import re
import sys
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Numbers of malloc's parameters: mallopt(3)."""

LARGEST = 32 * 2**20
"""Bytes from which on a block is the system's own mapping: the most that the library allows."""

RESERVED = 2 * 2**30
"""Bytes of addresses that are asked for at once, to be large pages where they are used: none of them is memory yet."""

_PAD = 64 * 2**20
_NEVER = 2**31 - 1
_HUGE_PAGE = 2 * 2**20
_HEAP = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*\[heap\]$", re.MULTILINE)
_kept: list[bool] = []


def keep_memory() -> bool:
    """Sets this process up so, once. Returns whether its C library is one that can be told."""
    if not _kept:
        library = _library()
        if library is not None:
            _keep(library)
        _kept.append(library is not None)
    return _kept[0]


def _library() -> ctypes.CDLL | None:
    """The GNU C library of this process; None if it has another."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "gnu_get_libc_version") else None


def _keep(library: ctypes.CDLL) -> None:
    library.mallopt(_MMAP_THRESHOLD, LARGEST)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    library.mallopt(_TOP_PAD, RESERVED - LARGEST if _addresses_are_free() else _PAD)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.free(library.malloc(LARGEST - mmap.PAGESIZE))  # more than is left: the heap grows now, by all that padding
    library.mallopt(_TOP_PAD, _PAD)
    _use_large_pages(library)


def _addresses_are_free() -> bool:
    """Whether addresses behind which there is no memory cost nothing: no limit on them, no system that counts them."""
    import resource  # not on every system

    counted = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    return resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY and not counted


def _use_large_pages(library: ctypes.CDLL) -> None:
    """Where the system has them for those who ask; elsewhere it refuses, or does as it always does."""
    found = _HEAP.search(Path("/proc/self/maps").read_text())
    if found is None:
        return
    begin, end = int(found[1], 16), int(found[2], 16)
    begin = -(-begin // _HUGE_PAGE) * _HUGE_PAGE
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if end > begin:
        library.madvise(begin, end - begin, mmap.MADV_HUGEPAGE)
