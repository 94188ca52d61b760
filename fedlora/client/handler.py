"""What a site does with what its server offers: look at it with the owner's eyes, train, and write down what leaves."""

import hashlib
import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora.client import controls
from fedlora.client.agreement import DisagreementError, agreed_worker
from fedlora.client.app import make_app
from fedlora.client.asked import Asked
from fedlora.client.deployed import DeployedSite
from fedlora.client.home import SiteHome, fingerprint_key
from fedlora.client.introduction import introduction
from fedlora.client.kept_on_disk import KeptOnDisk
from fedlora.client.policy import Policy
from fedlora.client.policy_check import PENDING, Refusal, base_refusal, refusals
from fedlora.client.resources import lacking
from fedlora.client.sent import SentRecord
from fedlora.errors import PolicyError
from fedlora.flower_internals import identify, stamp
from fedlora.link import content, limits
from fedlora.link.assignment import Task
from fedlora.link.v1.link_pb2 import DataSet, Hello, Offer, State
from fedlora.privacy.declined import DeclinedError
from fedlora.privacy.schedule import run_epsilon
from fedlora.wire import WireError, declined_reason
from fedlora.wire_start import read_work
from fedlora.wire_work import Work

log = logging.getLogger(__name__)

NODE = 2
"""The node id under which a site's app is called: it is its own only node."""


class SiteHandler:
    """`Handler` for a data owner's home. instance: random, of this process."""

    def __init__(self, site: DeployedSite, instance: str) -> None:
        self.site, self.home, self.instance = site, site.home, instance
        self.doing = ""
        self.told: dict[str, Any] = {}
        """What the last hello said of the site (`Introduction.shown`); empty before the first."""
        self._app: ClientApp = make_app(site)
        self._kept = KeptOnDisk(self.home.state / "runs")
        self._sent = SentRecord(self.home)
        identify(1)

    def hello(self) -> Hello:
        """Who this is, and what its owner lets it tell. The log and `told` have it for the owner."""
        policy = self.site.policy
        said = introduction(policy)
        if said.shown() != self.told:
            self.told = said.shown()
            log.info("what the server is told of this site: %s", json.dumps(self.told, ensure_ascii=False))
        return Hello(
            protocol=limits.PROTOCOL,
            version=said.version,
            instance=self.instance,
            capabilities=["train", "query"],
            data=data_sets(policy, said.data, self.home),
            state=self.state(),
            device=said.device,
            policy=said.policy,
        )

    def state(self) -> State:
        """Whether the owner has paused it, and what it works on."""
        reason = controls.paused(self.home)
        return State(paused=reason is not None, reason=(reason or "")[: limits.TEXT], work=self.doing)

    def decide(self, offer: Offer) -> str | None:
        """Why the site declines; None: it accepts. All that can be known before any tensor is there is checked."""
        work = facts(offer)
        try:
            policy = self.site.policy
        except PolicyError as error:  # what it says may be the owner's alone
            log.error("run %s, round %d: declined, as the site policy cannot be read: %s", work.run, work.round, error)
            return "The site's policy cannot be read at the moment."
        reasons = self._reasons(offer, work, policy)
        if reasons:
            log.info("run %s, round %d: declined: %s", work.run, work.round, " ".join(reasons))
            return " ".join(reasons)
        return self._disagreement(work)

    def _disagreement(self, work: Work) -> str | None:
        """What of this site's files does not fit the run, or the owner's policy."""
        try:
            worker = agreed_worker(work, self.site)
        except DisagreementError as error:
            log.warning("run %s does not fit this site: %s", work.run, error.detail)
            return str(error)
        refusal = base_refusal(self.site.policy, work.config.model.name, worker.base_digest)
        return None if refusal is None else refusal.text

    def _reasons(self, offer: Offer, work: Work, policy: Policy) -> Sequence[str]:
        reason = controls.paused(self.home)
        if reason is not None:
            return [f"The site's owner has paused it{': ' + reason if reason else ''}."]
        asked = asked_of(work, offer.kind, self.site.server)
        summary = summary_of(asked)
        approved = controls.approved(self.home, work.run, summary)
        found = refusals(policy, asked, datetime.now().astimezone(), joined=self.site.server, approved=approved)
        if found:
            self._note_waiting(work.run, summary, found)
            return [refusal.text for refusal in found]
        return lacking(policy.limits, self.home)

    def _note_waiting(self, run: str, summary: Mapping[str, Any], found: Sequence[Refusal]) -> None:
        """A run that only waits for its owner is put before the owner."""
        if {refusal.key for refusal in found} == {PENDING}:
            controls.note_waiting(self.home, run, summary)

    def work(self, task: Task) -> bytes:
        """Calls the client app. Raises DeclinedError if that declines, FedloraError or WireError if it fails."""
        offer, work = task.offer, facts(task.offer)
        self.site.asking(task.still_open)
        self.doing = f"{offer.kind} of run {work.run}, round {work.round}"
        try:
            state = self._kept.load(work.run, work.round)
            context = Context(run_id=1, node_id=NODE, node_config={}, state=state, run_config={})
            message = Message(task.content, NODE, offer.kind, group_id=str(work.round))
            stamp(message)
            reply = self._app(message, context)
            reason = declined_reason(reply.content)
            if reason is not None:
                raise DeclinedError(reason)
            self._kept.save(work.run, work.round, context.state)
            return content.serialised(content.whole(reply.content))
        finally:
            self.doing = ""

    def sending(self, offer: Offer, answer: bytes, offset: int) -> None:
        """Notes what is about to leave. Raises StoreError if it cannot be noted: then nothing leaves."""
        work, found = facts(offer), content.parse(answer)
        self._sent.append(
            server=self.site.server,
            run=work.run,
            round_number=work.round,
            kind=offer.kind,
            work=offer.work,
            manifest=work.manifest.digest(),
            sha256=hashlib.sha256(answer).hexdigest(),
            size=len(answer) - offset,
            epsilon=run_epsilon(work.config) if work.config.privacy.local else None,
            tensors=sum(len(record.tensors) for record in found.arrays),
        )

    def ended(self, offer: Offer, counted: bool, reason: str) -> None:
        """Writes it to the log."""
        outcome = "was counted" if counted else f"was not counted: {reason}"
        log.info("run %s, round %d: the update %s", offer.run, offer.round, outcome)


def facts(offer: Offer) -> Work:
    """What an offer asks. Raises WireError if it cannot be read, or contradicts itself."""
    work = read_work(content.records(offer.facts))
    if (offer.run, offer.round) != (work.run, work.round):
        raise WireError(
            f"the offer is for run {offer.run!r}, round {offer.round}, its task for {work.run!r}, {work.round}"
        )
    return work


def asked_of(work: Work, kind: str, server: str) -> Asked:
    """What a run asks, with its ε as this side computes it."""
    config = work.config
    return Asked.of(
        config,
        server=server,
        run=work.run,
        kind=kind,
        epsilon=run_epsilon(config) if config.privacy.local else config.privacy.epsilon,
        labels=work.labels,
        base_digest=work.base_digest,
    )


def summary_of(asked: Asked) -> dict[str, Any]:
    """What an owner is shown before the first approval: what would be sent, and to whom. The kind of work apart."""
    shown = asdict(asked)
    shown.pop("kind")
    shown["labels"] = None if asked.labels is None else list(asked.labels)
    return shown


def data_sets(policy: Policy, told: Mapping[str, int | None], home: SiteHome) -> list[DataSet]:
    """The data sets that are told: names, rounded sizes, and a fingerprint that only this site can make."""
    key = fingerprint_key(home)
    return [
        DataSet(
            name=name,
            nominal_size=size or 0,
            fingerprint=hmac.new(key, f"{name}\0{policy.data[name].model_dump_json()}".encode(), "sha256").digest(),
        )
        for name, size in told.items()
    ]
