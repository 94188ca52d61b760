"""The tensors of a message: from arrays to Flower's records and back.

Names, shapes and dtypes are checked before a byte is decoded, and NumPy decodes without pickle.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedlora.adapters.manifest import Tensors, TensorSpec

FRAME_BYTES = 128
"""What Flower's serialisation (the .npy format) adds to the values of one small-rank array: its header."""


class WireError(ValueError):
    """A message is not what the manifest and the task say it must be; the text names what and why."""


def to_record(tensors: Tensors) -> ArrayRecord:
    """The tensors as Flower's record, in their own order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in tensors.items()})


def payload_bytes(record: ArrayRecord, names: Iterable[str]) -> int:
    """Serialised bytes of those `names` that the record holds."""
    return sum(len(record[name].data) for name in names if name in record)


def predicted_bytes(specs: Iterable[TensorSpec]) -> int:
    """The serialised bytes that `payload_bytes` will count for tensors with these specs."""
    return sum(spec.nbytes + FRAME_BYTES for spec in specs)


def read_tensors(record: ArrayRecord, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """The record's arrays, decoded, in the order of `specs`.

    Raises WireError for a missing or unexpected name, a wrong shape or dtype, or more bytes than the shape needs.
    """
    missing, unexpected = sorted(set(specs) - set(record)), sorted(set(record) - set(specs))
    if missing:
        raise WireError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if unexpected:
        raise WireError(f"tensor {unexpected[0]!r} is not expected ({len(unexpected)} in all)")
    return {name: _decode(name, record[name], spec) for name, spec in specs.items()}


def _decode(name: str, array: Array, spec: TensorSpec) -> NDArray[Any]:
    limit = spec.nbytes + 2 * FRAME_BYTES
    if len(array.data) > limit:
        raise WireError(
            f"tensor {name!r} takes {len(array.data)} bytes; {spec.shape} {spec.dtype} needs at most {limit}"
        )
    try:
        values = array.numpy()
    except (ValueError, TypeError, EOFError, OSError, SyntaxError) as error:
        raise WireError(f"tensor {name!r} cannot be decoded: {error}") from error
    if values.shape != spec.shape or str(values.dtype) != spec.dtype:
        raise WireError(
            f"tensor {name!r} is {values.shape} {values.dtype}; the manifest says {spec.shape} {spec.dtype}"
        )
    return values
