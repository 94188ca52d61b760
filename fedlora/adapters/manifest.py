"""The adapter manifest: what every tensor of a run is, who trains it, and how it reaches a client.

The admission gate, the wire format, the byte counts and the export all read this one table.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]
"""Named arrays; the names are those of a manifest."""


class Role(StrEnum):
    """What a tensor is in ΔW = s·B·A or ΔW = s·B·R·A, or that it belongs to the task's head."""

    A = "A"
    B = "B"
    R = "R"
    HEAD = "head"


class Delivery(StrEnum):
    """How a tensor gets to a client."""

    ROUND = "round"  # sent with every round's task; comes back if it is trained
    ONCE = "once"  # sent once to each client, hash-checked, then kept there
    SEED = "seed"  # never sent: the client derives it from the run's seed
    LOCAL = "local"  # the client's own, never sent in either direction


class Form(StrEnum):
    """How the factors of one module make its update."""

    LORA = "lora"  # ΔW = s·B·A
    LORA_SB = "lora_sb"  # ΔW = s·B·R·A


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: `shape`, NumPy `dtype` name, `role`, whether clients train it, how it is delivered.

    `module` is the adapted module's path in the base model, or "" for the head.
    """

    shape: tuple[int, ...]
    role: Role
    module: str
    trained: bool
    delivery: Delivery
    dtype: str = "float32"

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the values alone."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def uploaded(self) -> bool:
        """Whether a client's update contains it."""
        return self.trained and self.delivery is Delivery.ROUND


@dataclass(frozen=True)
class Manifest:
    """All tensors of an adapter in a fixed order, with its `form`, rank `r` and scaling `s`.

    What follows from it is worked out once: it is asked for with every client of every round.
    """

    form: Form
    r: int
    scaling: float
    seed: int
    tensors: Mapping[str, TensorSpec]

    def names(self, *deliveries: Delivery) -> list[str]:
        """The names of the tensors with one of `deliveries` (of all, if none is given), in manifest order."""
        if not deliveries:
            return list(self.tensors)
        if len(deliveries) == 1:
            return list(self._delivered[deliveries[0]])
        return [name for name, spec in self.tensors.items() if spec.delivery in deliveries]

    @cached_property
    def _delivered(self) -> Mapping[Delivery, tuple[str, ...]]:
        found = {way: [name for name, spec in self.tensors.items() if spec.delivery is way] for way in Delivery}
        return {way: tuple(names) for way, names in found.items()}

    def uploaded(self) -> list[str]:
        """The names of what an update contains, in manifest order."""
        return list(self._uploaded)

    @cached_property
    def _uploaded(self) -> tuple[str, ...]:
        return tuple(name for name, spec in self.tensors.items() if spec.uploaded)

    @cached_property
    def expected(self) -> Mapping[str, TensorSpec]:
        """The specs of what an update contains, by name, in manifest order."""
        return {name: self.tensors[name] for name in self._uploaded}

    def modules(self) -> list[str]:
        """The adapted modules, in manifest order, each once."""
        return list(dict.fromkeys(spec.module for spec in self.tensors.values() if spec.module))

    def nbytes(self, names: list[str], *, head: bool) -> int:
        """Bytes of the values of those `names` that are (`head=True`) or are not part of the head."""
        specs = (self.tensors[name] for name in names)
        return sum(spec.nbytes for spec in specs if (spec.role is Role.HEAD) == head)

    def to_json(self) -> str:
        """One canonical line of JSON; equal manifests give equal text."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return json.dumps(asdict(self), sort_keys=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The manifest that `to_json` wrote.

        Raises ValueError, KeyError or TypeError if the text is no manifest.
        """
        raw = json.loads(text)
        tensors = {name: _spec(fields) for name, fields in raw["tensors"].items()}
        return cls(Form(raw["form"]), int(raw["r"]), float(raw["scaling"]), int(raw["seed"]), tensors)

    def digest(self) -> str:
        """SHA-256 of `to_json()`, in hex."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self._text.encode()).hexdigest()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)


def _spec(fields: dict[str, Any]) -> TensorSpec:
    return TensorSpec(
        shape=tuple(int(n) for n in fields["shape"]),
        role=Role(fields["role"]),
        module=str(fields["module"]),
        trained=bool(fields["trained"]),
        delivery=Delivery(fields["delivery"]),
        dtype=str(np.dtype(fields["dtype"])),
    )


def factor_name(module: str, role: Role) -> str:
    """The manifest's name for one factor of `module`, e.g. `encoder.layer.0.attention.self.query.lora_A`."""
    return f"{module}.lora_{role}"


def head_name(parameter: str) -> str:
    """The manifest's name for a parameter of the task's head, e.g. `head.classifier.weight`."""
    return f"head.{parameter}"


def tensors_digest(tensors: Tensors) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of the names; in hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")  # not ascontiguousarray: that makes a scalar a vector
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
