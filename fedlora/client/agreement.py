"""Whether a site has what a run needs: compared before work begins, from the facts of the task alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from torch import nn

from fedlora.adapters.manifest import Manifest, Role, TensorSpec, head_name
from fedlora.adapters.modules import linear_layer, weight_shape
from fedlora.client.site import SimulatedSite, Site
from fedlora.client.worker import Worker
from fedlora.errors import FedloraError, ModelError
from fedlora.privacy.declined import DeclinedError
from fedlora.wire_work import Work

_SHOWN = 3


class DisagreementError(DeclinedError):
    """What this site has does not fit the run: training would fail, or be silently wrong."""


@dataclass(frozen=True)
class Mismatch:
    """One thing that does not fit. text: a sentence for the owner. told: one that may travel to the server.

    They differ where `text` could tell of rows, files or columns.
    """

    text: str
    told: str


def mismatches(work: Work, worker: Worker) -> list[str]:
    """All that does not fit between what `work` says and what `worker` has, a full sentence for each, for the owner.

    Loads the site's data and model, which training needs anyway. Empty if nothing stands in the way.
    """
    return [found.text for found in find_mismatches(work, worker)]


def find_mismatches(work: Work, worker: Worker) -> list[Mismatch]:
    """As `mismatches`, with what may be told to the server."""
    return [found for check in CHECKS for found in check(work, worker)]


def agreed_worker(work: Work, site: Site) -> Worker:
    """The worker of `site` for `work`. In a simulation server and clients share files, and nothing is compared.

    Raises DisagreementError if it does not fit the run; its text may travel, its `detail` may not.
    """
    worker = site.worker(work)
    found = [] if isinstance(site, SimulatedSite) else find_mismatches(work, worker)
    if found:
        raise DisagreementError(" ".join(each.told for each in found), " ".join(each.text for each in found))
    return worker


def _data(work: Work, worker: Worker) -> Iterator[Mismatch]:
    """Columns are there, and labels are the run's."""
    try:
        own = worker.splits.labels
    except FedloraError as error:
        yield Mismatch(
            f"This site's data do not fit the run: {_said(error)}.",
            "This site's data do not have the columns and labels of the run; its own log says more.",
        )
        return
    if work.labels is not None and own != work.labels:
        text = f"The run's labels are {_listed(work.labels)}, this site's {_listed(own)}."
        yield Mismatch(text, "This site's labels are others than the run's.")


def _tokenizer(work: Work, worker: Worker) -> Iterator[Mismatch]:
    yield from _same("tokenizer or image processor", work.tokenizer_digest, lambda: worker.tokenizer_digest)


def _base(work: Work, worker: Worker) -> Iterator[Mismatch]:
    yield from _same("base model", work.base_digest, lambda: worker.base_digest)


def _same(what: str, theirs: str, digest: Callable[[], str]) -> Iterator[Mismatch]:
    if not theirs:
        return
    try:
        own = digest()
    except FedloraError as error:
        yield Mismatch(f"This site's {what} cannot be loaded: {_said(error)}.", f"This site's {what} cannot be loaded.")
        return
    if own != theirs:
        text = (
            f"This site's {what} has the SHA-256 {own[:12]}…, the run's {theirs[:12]}…: what is trained on one is"
            " silently wrong on the other; use the same files."
        )
        yield Mismatch(text, text)


def _adapter(work: Work, worker: Worker) -> Iterator[Mismatch]:
    """The manifest's modules and head are the model's."""
    try:
        skeleton = worker.skeleton
    except FedloraError as error:
        yield Mismatch(f"This site's model cannot be read: {_said(error)}.", "This site's model cannot be read.")
        return
    for text in islice(unfit(work.manifest, skeleton), _SHOWN):
        yield Mismatch(text, text)


def unfit(manifest: Manifest, skeleton: nn.Module) -> Iterator[str]:
    """A sentence for each tensor of `manifest` that has no place in the model."""
    parameters = {head_name(name): tuple(value.shape) for name, value in skeleton.named_parameters()}
    for name, spec in manifest.tensors.items():
        try:
            shape = parameters.get(name) if spec.role is Role.HEAD else _factor_shape(spec, manifest.r, skeleton)
        except ModelError as error:
            yield f"The run's tensor {name!r} fits no layer of this site's model: {_said(error)}."
            continue
        if shape != spec.shape:
            own = "no such parameter" if shape is None else f"the shape {shape}"
            yield f"The run's tensor {name!r} has the shape {spec.shape}, and this site's model has {own}."


def _factor_shape(spec: TensorSpec, r: int, skeleton: nn.Module) -> tuple[int, ...]:
    d, k = weight_shape(linear_layer(skeleton, spec.module))
    return {Role.A: (r, k), Role.B: (d, r)}.get(spec.role, (r, r))


def _said(error: FedloraError) -> str:
    return str(error).rstrip(".")


def _listed(labels: tuple[str, ...] | None) -> str:
    return "none" if labels is None else ", ".join(labels)


CHECKS = (_data, _tokenizer, _base, _adapter)
