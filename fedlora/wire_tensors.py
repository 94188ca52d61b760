"""The tensors of a message: from arrays to Flower's records and back.

Names, shapes, dtypes and sizes are compared with the manifest before a byte is decoded. The header of an array is
read here, by one pattern: NumPy's own reader evaluates it, believes the shape and allocates before it looks at what
is there, and opens zip files.
"""

import math
import re
from collections import UserDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedlora.adapters.flat import Flat, Layout
from fedlora.adapters.manifest import Tensors, TensorSpec
from fedlora.flower_internals import NUMPY, arrays_in, contents, encoded, record_over
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
    """The tensors as Flower's record, in their own order. Those in one piece are serialised when somebody looks."""
    return record_over(_Serialised(tensors)) if isinstance(tensors, Flat) else arrays_in(_encoded(tensors))


def _encoded(tensors: Tensors) -> dict[str, Array]:
    return {name: _encode(np.asarray(array, order="C")) for name, array in tensors.items()}


class _Serialised(UserDict[str, Array]):
    """The arrays of `flat`, made when they are first looked at: between clients and a server in one process, never."""

    def __init__(self, flat: Flat) -> None:
        self.flat = flat

    @cached_property
    def data(self) -> dict[str, Array]:  # type: ignore[override]
        """By name."""
        return _encoded(self.flat)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def _names(self) -> Collection[str]:
        return self.data if "data" in vars(self) else self.flat.layout.places


def flat_in(record: ArrayRecord) -> Flat | None:
    """The tensors that `to_record` was given in one piece; None for any others, and once their bytes were looked at."""
    behind = contents(record)
    return behind.flat if isinstance(behind, _Serialised) and "data" not in vars(behind) else None


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
    flat = flat_in(record)
    if flat is not None:
        sizes = _sizes(flat.layout, flat.vector.dtype)
        return sizes.all if names is flat else sum(sizes.each[name] for name in names if name in sizes.each)
    arrays = dict(record.items())
    return sum(len(arrays[name].data) for name in names if name in arrays)


@dataclass(frozen=True)
class _Sizes:
    """The serialised bytes of each tensor, and of all."""

    each: Mapping[str, int]
    all: int


@lru_cache(maxsize=64)
def _sizes(layout: Layout, dtype: np.dtype[Any]) -> _Sizes:
    each = {name: len(_header(dtype, shape)) + math.prod(shape) * dtype.itemsize for name, shape in layout.shapes}
    return _Sizes(each, sum(each.values()))


def predicted_bytes(specs: Iterable[TensorSpec]) -> int:
    """The serialised bytes that `payload_bytes` will count for tensors with these specs."""
    return sum(spec.nbytes + FRAME_BYTES for spec in specs)


def read_tensors(record: ArrayRecord, specs: Mapping[str, TensorSpec]) -> Tensors:
    """The record's arrays, decoded, in the order of `specs`: read-only, in the memory of the record.

    Those that never were serialised are still in one piece.

    Raises WireError for a missing or unexpected name, a wrong shape or dtype, or more bytes than the shape needs.
    """
    flat = flat_in(record)
    if flat is not None and _is_known(flat, specs):
        return flat
    if record.keys() != specs.keys():
        raise _other_names(set(record), set(specs))
    arrays = dict(record.items())
    return {name: _decode(name, arrays[name], spec) for name, spec in specs.items()}


_fitting: dict[str, tuple[Layout, np.dtype[Any], Mapping[str, TensorSpec]]] = {}


def _is_known(flat: Flat, specs: Mapping[str, TensorSpec]) -> bool:
    """As `_is_of`; the same `specs`, which nobody changes, are not compared again for each of a round's updates."""
    last = _fitting.get("last")
    if last and last[0] is flat.layout and last[1] is flat.vector.dtype and last[2] is specs:
        return True
    fits = _is_of(flat, specs)
    if fits:
        _fitting["last"] = (flat.layout, flat.vector.dtype, specs)
    return fits


def _is_of(flat: Flat, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether it holds exactly the tensors of `specs`, in their order."""
    shapes, dtype = flat.layout.shapes, _dtype_text(flat.vector.dtype)
    return len(shapes) == len(specs) and all(
        name == wanted and shape == spec.shape and dtype == spec.dtype
        for (name, shape), (wanted, spec) in zip(shapes, specs.items(), strict=True)
    )


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
