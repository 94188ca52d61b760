"""The tensors of tasks: a round's clients in one process share them, so they are read once."""

from dataclasses import dataclass
from types import MappingProxyType

from flwr.app import ArrayRecord

from fedlora.adapters.manifest import Manifest, Tensors
from fedlora.wire_tensors import flat_in, read_tensors

_Content = list[tuple[str, bytes, str, tuple[int, ...], str]]


@dataclass(frozen=True)
class _Read:
    """What was read: by which manifest, from which bytes (None: from one piece), and what nobody may change of it."""

    manifest: Manifest
    content: _Content | None
    tensors: Tensors


_last_read: dict[str, _Read] = {}


def _identical(one: _Content, other: _Content) -> bool:
    """Whether both are the same bytes in memory, described alike."""
    return len(one) == len(other) and all(a[1] is b[1] and a == b for a, b in zip(one, other, strict=True))


def known_tensors(record: ArrayRecord, manifest: Manifest) -> Tensors:
    """The tensors in `record`, all of which the manifest must know.

    A round's clients in one process share their arrays: what was read last is not read again. Bytes cannot change, so
    the same bytes under the same names, read by the same manifest, are the same tensors.
    """
    flat, last = flat_in(record), _last_read.get("task")
    if flat is not None and last is not None and last.manifest is manifest and last.tensors is flat:
        return flat
    if flat is not None and flat.keys() <= manifest.tensors.keys():
        found = read_tensors(record, {name: manifest.tensors[name] for name in flat})
        _last_read["task"] = _Read(manifest, None, found)
        return found
    content = [(name, array.data, array.dtype, array.shape, array.stype) for name, array in record.items()]
    if last and last.content is not None and last.manifest is manifest and _identical(last.content, content):
        return last.tensors
    found = MappingProxyType(read_tensors(record, {n: spec for n, spec in manifest.tensors.items() if n in record}))
    _last_read["task"] = _Read(manifest, content, found)
    return found
