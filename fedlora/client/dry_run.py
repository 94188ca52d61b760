"""What would leave: one round of an experiment on the site's own data, whose answer is shown and not sent.

The method's first state is made here, from the site's own base model, so no server is needed. Nothing is spent: under
local DP a ledger that exists only for the moment stands in for the site's.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedlora.adapters.manifest import Form, Manifest
from fedlora.client.app import make_app
from fedlora.client.deployed import DeployedSite
from fedlora.client.handler import NODE, asked_of
from fedlora.client.home import SiteHome, joined
from fedlora.client.introduction import introduction
from fedlora.client.policy_check import PENDING, refusals
from fedlora.client.resources import lacking
from fedlora.client.site_data import own_labels, with_own_files
from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.flower_internals import identify
from fedlora.link import content
from fedlora.privacy.ledger import Schedule, create_ledger
from fedlora.privacy.schedule import run_epsilon, settle_privacy
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.simulations.sites import common_to
from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid
from fedlora.wire import declined_reason
from fedlora.wire_start import read_work
from fedlora.wire_work import Work, travelling

RUN = "dry-run"
_ENOUGH = 1e6


@dataclass(frozen=True)
class Tensor:
    """One tensor of the answer."""

    name: str
    shape: Sequence[int]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Shown:
    """What would leave. refusals: why the policy, or this machine now, would decline instead. size: bytes in all.

    told: what the server is told of the site whenever the client connects (`Introduction.shown`).
    """

    refusals: Sequence[str]
    tensors: Sequence[Tensor]
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]
    size: int
    sha256: str
    epsilon: float | None
    told: Mapping[str, Any]


class DrySite(DeployedSite):
    """The site, with a ledger for the moment and no server to ask."""

    def __init__(self, home: SiteHome, server: str, folder: Path) -> None:
        super().__init__(home, server)
        self._folder = folder

    def ledger(self, work: Work, schedule: Schedule) -> Path:
        """Made on first use; it counts, and is thrown away."""
        del schedule
        place = self._folder / "ledger"
        if not place.exists():
            create_ledger(place, RUN, _ENOUGH, work.config.privacy.delta)
        return place

    def still_open(self, work: Work) -> bool:
        """Nothing is sent, so nothing is late."""
        del work
        return True

    def results(self, work: Work) -> Path | None:
        """Not kept."""
        del work
        return None


def dry_run(home: SiteHome, config: RunConfig) -> Shown:
    """Trains one round of `config` at this site and shows the answer.

    Raises DataError or ModelError for data or a model that the policy does not name or that cannot be read, and
    FedloraError as training does.
    """
    alone = {"sites": ("here",), "clients": 1, "cohort": 1, "release_few": True, "min_reports": 1}
    config = settle_privacy(config.model_copy(update={"federation": config.federation.model_copy(update=alone)}))
    with tempfile.TemporaryDirectory(prefix="fedlora-dry-run-") as folder:
        site = DrySite(home, joined(home) or "no server", Path(folder))
        message = _message(site, config)
        declined = _refusals(site, message)
        reply = _answered(site, message)
        told = introduction(site.policy).shown()
    return _shown(reply, declined, run_epsilon(config) if config.privacy.local else None, told)


def _message(site: DrySite, config: RunConfig) -> Message:
    """The first round's message, as a server would make it, with this site's labels and files."""
    data, model = site.files(config)
    own = site.policy.data[config.data.name].labels or own_labels(with_own_files(config, data, model), data)
    nothing = Manifest(Form.LORA, config.adapter.r, config.adapter.s, config.seed, {})  # the worker does not look at it
    worker = site.worker(Work(run=RUN, round=1, client=0, config=travelling(config), manifest=nothing, labels=own))
    method = make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    common = common_to(worker, fixed=bool(state.fixed))
    strategy = FlowerStrategy(
        method,
        state,
        config,
        RUN,
        base_digest=common.base_digest,
        labels=common.labels,
        tokenizer_digest=common.tokenizer_digest,
    )
    grid = VirtualGrid(InProcess(Clients(make_app(site))), 1)
    return next(iter(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)))


def _refusals(site: DrySite, message: Message) -> list[str]:
    asked = asked_of(read_work(message.content), "train", site.server)
    now = datetime.now().astimezone()
    found = refusals(site.policy, asked, now, joined=site.server, approved=True)
    return [*(refusal.text for refusal in found if refusal.key != PENDING), *lacking(site.policy.limits, site.home)]


def _answered(site: DrySite, message: Message) -> RecordDict:
    identify(1)
    context = Context(run_id=1, node_id=NODE, node_config={}, state=RecordDict(), run_config={})
    reply: RecordDict = make_app(site)(message, context).content
    return reply


def _shown(reply: RecordDict, declined: Sequence[str], epsilon: float | None, told: Mapping[str, Any]) -> Shown:
    reason = declined_reason(reply)
    data = content.serialised(content.whole(reply))
    arrays = reply.array_records.get("arrays", ArrayRecord())
    return Shown(
        refusals=[*declined, *([reason] if reason else [])],
        tensors=[Tensor(name, array.shape, array.dtype, len(array.data)) for name, array in arrays.items()],
        metrics={name: float(str(value)) for name, value in reply.metric_records.get("metrics", {}).items()},
        facts=dict(reply.config_records.get("answer", {})),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        epsilon=epsilon,
        told=told,
    )
