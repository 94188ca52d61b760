"""The strategy seam: a method is a few pure functions over one serialisable state.

A strategy sees named NumPy arrays and sizes, never Flower, gRPC, torch or a model. It is a frozen dataclass: its fields
are its options (`strategy.<field>` in a config, checked against the annotated types), its methods are pure. A new
method is one file with one such class and one registration (`fedlora.strategies.registry`, or from another package the
entry-point group `fedlora.strategies`).

One round, as the server runs it:

    partial = strategy.begin(state)
    for update in updates_in_client_order:             # streamed; or folded in parts that are merged
        partial = strategy.fold(state, partial, update)
    state, metrics = strategy.finish(state, partial)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_origin, get_type_hints

from numpy.typing import NDArray

from fedlora.adapters.flat import weighted_sum
from fedlora.adapters.init import derive_seeded
from fedlora.adapters.manifest import Delivery, Manifest, Tensors
from fedlora.errors import StrategyError


def sketch_name(module: str, side: Literal["Y", "Z"]) -> str:
    """The name of one of a module's two sketches, e.g. `encoder.layer.0.attention.self.query.sketch_Y`."""
    return f"{module}.sketch_{side}"


def _no_sketch(width: int) -> Tensors:
    raise StrategyError(
        f"init=private needs clients that train under DP (privacy=dp): nobody here can be asked for noised sketches of"
        f" width {width}. Set privacy=dp, or strategy.init=weights or random, which read no data"
    )


@dataclass(frozen=True)
class Setup:
    """What a strategy may look at when a run starts.

    modules: adapted module → (d, k), the shape of its weight W0 (d outputs, k inputs).
    head: initial values of the task's head, by manifest name (`head.…`); empty if the task has none.
    weight: gives W0 of a module, shape (d, k), float32; loads the model on first use.
    gradient: gives, per module, the gradient of the mean loss at the base weights, shape (d, k); its argument
        says on which rows: "public" (the validation split, which the server holds) or "private" (the union of the
        clients' rows: simulation only, and not private at all).
    sketch: given a width p, asks the clients for noised sketches of their first-step gradients and gives the uniform
        mean: per module Y, shape (d, p), and Z, shape (k, p), by `sketch_name`. Costs the clients one DP release, each
        time it is called; raises StrategyError where clients do not train under DP.
    """

    modules: Mapping[str, tuple[int, int]]
    r: int
    scaling: float
    seed: int
    head: Tensors
    train_head: bool
    weight: Callable[[str], NDArray[Any]]
    gradient: Callable[[str], Tensors]
    sketch: Callable[[int], Tensors] = _no_sketch


@dataclass(frozen=True)
class State:
    """All that a method carries from round to round: arrays only, so that safetensors holds it.

    shared: what clients load each round (`Delivery.ROUND`). fixed: what each client gets once (`Delivery.ONCE`).
    server: what never leaves the server (momenta and the like), under names of the strategy's own.
    local: initial values of what each client keeps to itself (`Delivery.LOCAL`). They are sent once to each client,
        like `fixed`; from then on the client's own values count, and these never change.
    """

    manifest: Manifest
    shared: Tensors
    fixed: Tensors = field(default_factory=dict)
    server: Tensors = field(default_factory=dict)
    local: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """One admitted client's answer: the `manifest.uploaded()` tensors and the `weight` (> 0) it counts with."""

    client: int
    tensors: Tensors
    weight: float


@dataclass(frozen=True)
class Partial:
    """A partly folded round: Σ w, Σ w·tensor in float64, and what else a method needs (arrays only).

    Partial states of disjoint sets of clients merge, so workers can fold their own clients.
    """

    weight: float = 0.0
    sums: Tensors = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


Metrics = Mapping[str, float]


class Strategy(ABC):
    """A federated LoRA method. Subclasses are frozen dataclasses; this base averages each trained tensor.

    name: the word in `strategy=<name>`. summary: one line for `fedlora ls strategies`. paper: where it is from.
    exact: whether the aggregate's ΔW equals the weighted mean of the clients' ΔW. defaults: settings outside
    `strategy` that suit the method (dotted key → value, e.g. `adapter.r`); what the user says always wins.
    single_updates: whether its aggregation compares clients' single updates, so that their mean alone is not enough for
    it; such a method cannot run under central DP. buffered: whether a stale update can be moved to the present state by
    adding its change: each tensor that travels is averaged by itself, `plan` gives everyone `State.shared`, clients
    keep nothing of their own, and what is frozen stays as it is. Only such a method can run in buffered rounds.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    exact: ClassVar[bool]
    defaults: ClassVar[Mapping[str, Any]] = {}
    single_updates: ClassVar[bool] = False
    buffered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks the options against their annotated types. Raises StrategyError with every mistake."""
        from pydantic import TypeAdapter, ValidationError

        problems = []
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            try:
                if get_origin(kind) is not ClassVar:
                    TypeAdapter(kind).validate_python(getattr(self, name), strict=True)
            except ValidationError as error:
                problems += [f"strategy.{name}={getattr(self, name)!r}: {e['msg']}" for e in error.errors()]
        if problems:
            raise StrategyError(f"{type(self).__name__}: " + "; ".join(problems))

    @property
    def reads_private_data(self) -> bool:
        """Whether `start`, with these options, looks at clients' rows: in a simulation only, and not private."""
        return False

    @property
    def private_start(self) -> bool:
        """Whether `start` asks clients for noised sketches, which costs one release more."""
        return False

    @abstractmethod
    def manifest(self, setup: Setup) -> Manifest:
        """Every tensor of the adapter: shape, role, trained or frozen, delivery. Must not touch `setup.weight`."""

    @abstractmethod
    def start(self, setup: Setup) -> State:
        """The state before round 1."""

    def plan(self, state: State, client: int) -> Tensors:
        """What `client` loads this round, by manifest name. The same for everyone unless a method says otherwise."""
        del client
        return state.shared

    def begin(self, state: State) -> Partial:
        """An empty partial aggregate of a round that starts at `state`."""
        del state
        return Partial()

    def fold(self, state: State, partial: Partial, update: Update) -> Partial:
        """`partial` with one more client's `update` counted in."""
        del state
        sums = weighted_sum(partial.sums, update.tensors, update.weight)
        return replace(partial, weight=partial.weight + update.weight, sums=sums)

    def merge(self, left: Partial, right: Partial) -> Partial:
        """The partial aggregate of both sets of clients."""
        if not left.sums or not right.sums:
            return left if left.sums else right
        sums = {name: left.sums[name] + right.sums[name] for name in left.sums}
        return replace(left, weight=left.weight + right.weight, sums=sums)

    def finish(self, state: State, partial: Partial) -> tuple[State, Metrics]:
        """The next state, and what the method wants to report about the round (names → numbers).

        Raises StrategyError if nothing was folded in.
        """
        return replace(state, shared={**state.shared, **self.means(state, partial)}), {}

    @staticmethod
    def means(state: State, partial: Partial) -> dict[str, NDArray[Any]]:
        """Σ w·tensor / Σ w, in the manifest's dtypes."""
        if not partial.weight > 0:
            raise StrategyError(f"no client's update was folded in (total weight {partial.weight}): nothing to average")
        specs = state.manifest.tensors
        return {name: (total / partial.weight).astype(specs[name].dtype) for name, total in partial.sums.items()}


def global_tensors(state: State) -> dict[str, NDArray[Any]]:
    """Every tensor of the server's model at `state`, in manifest order: what is evaluated and exported.

    Tensors of `Delivery.SEED` are derived; those of `Delivery.LOCAL` have their initial values, as the server knows no
    others: a method that keeps a factor on the clients has no single global ΔW.
    """
    values = {**state.shared, **state.fixed, **state.local, **derive_seeded(state.manifest)}
    return {name: values[name] for name in state.manifest}


def keeps_client_state(manifest: Manifest) -> bool:
    """Whether clients keep tensors of their own between rounds, which a checkpoint must then hold."""
    return bool(manifest.names(Delivery.LOCAL))
