"""Named arrays as safetensors, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from fedlora.adapters.manifest import Tensors, tensors_digest
from fedlora.errors import StoreError
from fedlora.server.durable import replace_synced

FIXED = "fixed.safetensors"
_DIGEST = "fedlora.digest"


def pack(tensors: Tensors, digest: str | None = None) -> bytes:
    """The safetensors file of `tensors`; with `digest`, that text is in its header."""
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    return save(dense, metadata=None if digest is None else {_DIGEST: digest})


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, as arrays that can be written to.

    Raises SafetensorError if it is none.
    """
    return {name: array.copy() for name, array in load(data).items()}


def nbytes(tensors: Tensors) -> int:
    """Bytes of the values alone."""
    return sum(np.asarray(array).nbytes for array in tensors.values())


def keep_fixed(run_folder: Path, tensors: Tensors, *, may_replace: bool) -> str | None:
    """Sees to it that the run folder has `tensors` in fixed.safetensors; returns their digest, None if there are none.

    They are written once. may_replace: whether other tensors there are a leftover (no round is saved yet) or, as
    StoreError, a change that must not be. Raises OSError too.
    """
    if not tensors:
        return None
    digest, path = tensors_digest(tensors), run_folder / FIXED
    found = _noted_digest(path)
    if found == digest:
        return digest
    if found is not None and not may_replace:
        raise StoreError(
            f"the fixed tensors of the run changed: {path} has digest {found[:12]}… and the state's is {digest[:12]}…;"
            " a strategy must leave `State.fixed` as `start` made it"
        )
    replace_synced(path, pack(tensors, digest))
    return digest


def read_fixed(data: bytes, digest: str) -> dict[str, NDArray[Any]]:
    """The tensors of fixed.safetensors. Raises ValueError if they are not those of `digest`, SafetensorError."""
    tensors = unpack(data)
    found = tensors_digest(tensors)
    if found != digest:
        raise ValueError(f"its tensors have digest {found[:12]}… and the checkpoint needs {digest[:12]}…")
    return tensors


def _noted_digest(path: Path) -> str | None:
    """The digest in the file's header, without reading the values; None if there is no such file or header."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(_DIGEST)
    except (FileNotFoundError, SafetensorError):
        return None
