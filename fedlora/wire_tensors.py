"""The tensors of a message: from arrays to Flower's records and back.

Names, shapes, dtypes and sizes are compared with the manifest before a byte is decoded. The header of an array is
read here, by one pattern: NumPy's own reader evaluates it, believes the shape and allocates before it looks at what
is there, and opens zip files.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedlora.adapters.manifest import Tensors, TensorSpec
from fedlora.flower_internals import NUMPY, arrays_in, encoded
from fedlora.link.limits import TEXT, shown

FRAME_BYTES = 128
"""What Flower's serialisation (the .npy format) adds to the values of one small-rank array: its header."""

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER_AT = len(_MAGIC) + 2  # behind the header's length, 16 bits
_SIZE = rb"(?:0|[1-9][0-9]*)"
_SHAPE = rb"\((|%b,|%b(?:, %b)+)\)" % (_SIZE, _SIZE, _SIZE)
_HEADER = re.compile(
    rb"\{'descr': '([<>|][biufc][0-9]{1,2})', 'fortran_order': (False|True), 'shape': %b, \} *\n" % _SHAPE
)
"""The one text that NumPy writes for an array of numbers, in version 1 of the format."""


class WireError(ValueError):
    """A message is not what the manifest and the task say it must be; the text names what and why.

    It is one line, cut at 1,000 characters: it may quote what a stranger sent, and goes into rosters and logs.
    """

    def __init__(self, text: str) -> None:
        super().__init__(shown(text) if len(text) <= TEXT else f"{shown(text, TEXT - 1)}…")


def to_record(tensors: Tensors) -> ArrayRecord:
    """The tensors as Flower's record, in their own order."""
    return arrays_in({name: _encode(np.ascontiguousarray(array)) for name, array in tensors.items()})


def _encode(array: NDArray[Any]) -> Array:
    """As Flower does, byte for byte."""
    dtype, shape = array.dtype, array.shape
    return encoded(_dtype_text(dtype), shape, b"".join((_header(dtype, shape), array.data)))


@lru_cache(maxsize=64)
def _dtype_text(dtype: np.dtype[Any]) -> str:
    return str(dtype)


@lru_cache(maxsize=4096)  # a model has few different shapes
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What NumPy writes before the values of such an array in C order: 128 bytes, for the shapes of adapters."""
    described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    file = BytesIO()
    npy.write_array_header_1_0(file, described)
    return file.getvalue()


def payload_bytes(record: ArrayRecord, names: Iterable[str]) -> int:
    """Serialised bytes of those `names` that the record holds."""
    arrays = dict(record.items())
    return sum(len(arrays[name].data) for name in names if name in arrays)


def predicted_bytes(specs: Iterable[TensorSpec]) -> int:
    """The serialised bytes that `payload_bytes` will count for tensors with these specs."""
    return sum(spec.nbytes + FRAME_BYTES for spec in specs)


def read_tensors(record: ArrayRecord, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """The record's arrays, decoded, in the order of `specs`: read-only, in the memory of the record.

    Raises WireError for a missing or unexpected name, a wrong shape or dtype, or more bytes than the shape needs.
    """
    if record.keys() != specs.keys():
        raise _other_names(set(record), set(specs))
    arrays = dict(record.items())
    return {name: _decode(name, arrays[name], spec) for name, spec in specs.items()}


def _other_names(found: set[str], wanted: set[str]) -> WireError:
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    if missing:
        return WireError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    return WireError(f"tensor {unexpected[0][:100]!r} is not expected ({len(unexpected)} in all)")


def _decode(name: str, array: Array, spec: TensorSpec) -> NDArray[Any]:
    data, form = array.data, _form(spec.dtype, spec.shape)
    if len(data) == form.nbytes and data.startswith(form.header):
        begin = len(form.header)
    else:
        begin = _begin_otherwise(name, data, spec)
    if array.stype != NUMPY or array.dtype != spec.dtype or tuple(array.shape) != spec.shape:
        raise WireError(
            f"tensor {name!r} cannot be decoded: its record and its bytes disagree on shape, dtype or encoding"
        )
    return np.frombuffer(data, form.dtype, form.size, begin).reshape(spec.shape)


@dataclass(frozen=True)
class _Form:
    """What an array of a dtype and shape is as NumPy writes it: its header, and how many bytes it has in all.

    nbytes: -1 if `_HEADER` would refuse it.
    """

    dtype: np.dtype[Any]
    size: int
    header: bytes
    nbytes: int


@lru_cache(maxsize=4096)
def _form(dtype: str, shape: tuple[int, ...]) -> _Form:
    kind, size = np.dtype(dtype), math.prod(shape)
    header = _header(kind, shape)
    fits = _HEADER.fullmatch(header, _HEADER_AT) is not None
    return _Form(kind, size, header, len(header) + size * kind.itemsize if fits else -1)


def _begin_otherwise(name: str, data: bytes, spec: TensorSpec) -> int:
    """Where the values begin in what does not look as NumPy would write it here, but may be the same."""
    limit = spec.nbytes + 2 * FRAME_BYTES
    if len(data) > limit:
        raise WireError(f"tensor {name!r} takes {len(data)} bytes; {spec.shape} {spec.dtype} needs at most {limit}")
    return _checked_header(name, data, spec)


def _checked_header(name: str, data: bytes, spec: TensorSpec) -> int:
    """Where the values begin. Raises WireError unless exactly those of `spec` follow, in C order."""
    begin = _HEADER_AT + int.from_bytes(data[len(_MAGIC) : _HEADER_AT], "little")
    found = _HEADER.fullmatch(data, _HEADER_AT, begin) if data.startswith(_MAGIC) and begin <= len(data) else None
    if found is None:
        raise WireError(f"tensor {name!r} cannot be decoded: it does not begin as an array of numbers does (.npy, 1.0)")
    kind, order, shape = found[1].decode(), found[2], tuple(int(n) for n in re.findall(rb"[0-9]+", found[3]))
    if kind != np.dtype(spec.dtype).str or shape != spec.shape or order != b"False":
        order_text = " in Fortran order" if order == b"True" else ""
        raise WireError(
            f"tensor {name!r} is {shape} {_dtype_name(kind)}{order_text}; the manifest says {spec.shape} {spec.dtype}"
        )
    if len(data) - begin != spec.nbytes:
        raise WireError(
            f"tensor {name!r} has {len(data) - begin} bytes of values; {spec.shape} {spec.dtype} are {spec.nbytes}"
        )
    return begin


def _dtype_name(kind: str) -> str:
    """What people call the dtype that NumPy writes as `kind`."""
    try:
        return str(np.dtype(kind))
    except (TypeError, ValueError):
        return repr(kind)
