"""What a run asks, held against a site's policy. One rule, one function; `RULES` lists them. Nothing here has effects.

The reasons travel to the server that asked: they name the policy's keys and values, and never a path or a row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from fedlora.client.address import normal_address
from fedlora.client.asked import Asked
from fedlora.client.hours import is_open, next_opening
from fedlora.client.policy import Policy

__all__ = ["KINDS", "PENDING", "Asked", "Refusal", "base_refusal", "leaving", "names_in_short", "refusals"]

KINDS = ("train", "query")
"""The kinds of work that this version can do."""

PENDING = "approval"
"""The `key` of the refusal that ends when the owner approves the run."""

_STRENGTH = {"none": 0, "central": 1, "dp": 2}


@dataclass(frozen=True)
class Refusal:
    """Why not, as a sentence that may travel. key: of the policy. permanent: asking again later is of no use."""

    key: str
    text: str
    permanent: bool = True


@dataclass(frozen=True)
class Case:
    """One run at one site at one time."""

    policy: Policy
    asked: Asked
    now: datetime
    joined: str | None
    approved: bool


Rule = Callable[[Case], Iterator[Refusal]]


def refusals(
    policy: Policy, asked: Asked, now: datetime, *, joined: str | None = None, approved: bool = False
) -> list[Refusal]:
    """Every reason why the site will not do what is asked; empty if it will.

    now: the site's local time. joined: the address of the server that the site enrolled with; without it only the
    policy's `servers` count. approved: whether the owner has approved the run.
    """
    case = Case(policy, asked, now, joined, approved)
    return [found for rule in RULES for found in rule(case)]


def leaving(policy: Policy, metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of `metrics`, measured without local DP, that the policy lets leave."""
    return {name: value for name, value in metrics.items() if name in policy.metrics}


def names_in_short(values: Iterable[object]) -> str:
    """The values as reasons name them: each on one line and bounded, of many the first eight and how many there are."""
    found = [_shown(value) for value in values]
    return ", ".join(found[:8]) + (f", … ({len(found)} in all)" if len(found) > 8 else "")


def base_refusal(policy: Policy, model: str, digest: str) -> Refusal | None:
    """Why the base model `model` with that digest may not be used; also for the digest of the site's own copy."""
    rule = policy.models.get(model)
    if rule is None or rule.sha256 is None or rule.sha256 == digest:
        return None
    key = f"models.{_short(model)}.sha256"
    return Refusal(key, f"{key} = {rule.sha256[:12]}…, and the base model has {_shown(digest[:12])}….")


def known_kind(case: Case) -> Iterator[Refusal]:
    """What this version does not know it cannot judge."""
    if case.asked.kind not in KINDS:
        yield Refusal("kind", f"this site does work of the kinds {', '.join(KINDS)}, not {_shown(case.asked.kind)}.")


def server(case: Case) -> Iterator[Refusal]:
    """Only servers that are named, or the one that was joined."""
    allowed = case.policy.servers or tuple(filter(None, [case.joined]))
    if _address(case.asked.server) not in map(_address, allowed):
        what = "servers" if case.policy.servers else "servers = [], which means the server that was joined"
        yield Refusal("servers", f"{what}: {_listed(allowed)}; the run comes from {_shown(case.asked.server)}.")


def model(case: Case) -> Iterator[Refusal]:
    """Only models that are named, with the digest that the owner insists on."""
    asked = case.asked
    if asked.model not in case.policy.models:
        yield Refusal("models", f"models has {_listed(case.policy.models)}; the run asks for {_shown(asked.model)}.")
    elif asked.base_digest:
        found = base_refusal(case.policy, asked.model, asked.base_digest)
        if found is not None:
            yield found


def data(case: Case) -> Iterator[Refusal]:
    """Only data sets that are named; of those, only what has a role, with the labels in the same order."""
    asked, rule = case.asked, case.policy.data.get(case.asked.data)
    if rule is None:
        yield Refusal("data", f"data has {_listed(case.policy.data)}; the run asks for {_shown(asked.data)}.")
        return
    mapped = rule.columns.mapped()
    for role, column in asked.columns.items():
        if role not in mapped:
            key = f"data.{_short(asked.data)}.columns"
            said = f"the run reads {_shown(role)} (it calls the column {_shown(column)})"
            yield Refusal(key, f"{key} names {_listed(mapped)}; {said}.")
    if None not in (rule.labels, asked.labels) and rule.labels != asked.labels:
        key = f"data.{_short(asked.data)}.labels"
        yield Refusal(key, f"{key} = {_listed(rule.labels or ())}; the run has {_listed(asked.labels or ())}.")


def task(case: Case) -> Iterator[Refusal]:
    """What the site allows, and what it allows with these data."""
    asked, rule = case.asked.task, case.policy.data.get(case.asked.data)
    if case.policy.tasks is not None and asked not in case.policy.tasks:
        yield Refusal("tasks", f"tasks = {_listed(case.policy.tasks)}; the run's task is {_shown(asked)}.")
    elif rule is not None and rule.tasks is not None and asked not in rule.tasks:
        key = f"data.{_short(case.asked.data)}.tasks"
        yield Refusal(key, f"{key} = {_listed(rule.tasks)}; the run's task is {_shown(asked)}.")


def strategy(case: Case) -> Iterator[Refusal]:
    """Only methods that are named, if any are."""
    allowed, asked = case.policy.strategies, case.asked.strategy
    if allowed is not None and asked not in allowed:
        yield Refusal("strategies", f"strategies = {_listed(allowed)}; the run's is {_shown(asked)}.")


def protection(case: Case) -> Iterator[Refusal]:
    """At least as private as the owner insists."""
    asked, required = case.asked, case.policy.privacy.require
    if _STRENGTH.get(asked.protection, -1) < _STRENGTH[required]:
        seed = ", whose noise comes from a seed and counts as none" if asked.noise != "system" else ""
        yield Refusal(
            "privacy.require", f"privacy.require = {required}; the run has privacy = {_shown(asked.privacy)}{seed}."
        )


def epsilon(case: Case) -> Iterator[Refusal]:
    """No more than a run may spend; a run that does not say what it spends is refused."""
    asked, most = case.asked, case.policy.privacy.epsilon_run
    if asked.privacy == "none" or most is None:
        return
    if asked.epsilon is None or not 0 <= asked.epsilon <= most:
        said = "does not say what it spends" if asked.epsilon is None else f"would spend {asked.epsilon:.6g}"
        yield Refusal("privacy.epsilon_run", f"privacy.epsilon_run = {most:g}; the run {said}.")


def delta(case: Case) -> Iterator[Refusal]:
    """The probability with which ε may be exceeded."""
    asked, most = case.asked, case.policy.privacy.delta
    if asked.privacy != "none" and not 0 <= asked.delta <= most:
        yield Refusal("privacy.delta", f"privacy.delta = {most:g}; the run has {asked.delta:g}.")


def unit(case: Case) -> Iterator[Refusal]:
    """One unit a site: epsilons of different units cannot be added up."""
    asked, own, rule = case.asked, case.policy.privacy.unit, case.policy.data.get(case.asked.data)
    if asked.privacy != "dp":
        return
    if asked.unit != own:
        yield Refusal("privacy.unit", f"privacy.unit = {_shown(own)}; the run has {_shown(asked.unit)}.")
    elif rule is not None and rule.units is not None and asked.unit not in rule.units:
        key = f"data.{_short(asked.data)}.units"
        yield Refusal(key, f"{key} = {_listed(rule.units)}; the run has {_shown(asked.unit)}.")


def amounts(case: Case) -> Iterator[Refusal]:
    """Work has a size."""
    for key, most, asked in (
        ("rounds_max", case.policy.rounds_max, case.asked.rounds),
        ("steps_max", case.policy.steps_max, case.asked.steps),
        ("batch_max", case.policy.batch_max, case.asked.batch),
    ):
        if most is not None and asked > most:
            yield Refusal(key, f"{key} = {most}; the run asks for {asked}.")


def approval(case: Case) -> Iterator[Refusal]:
    """The owner looks at each run once, unless the policy is enough."""
    if case.policy.approval == "first_run" and not case.approved:
        text = f"approval = first_run, and the owner has not approved the run {_shown(case.asked.run)} yet."
        yield Refusal(PENDING, text, permanent=False)


def hours(case: Case) -> Iterator[Refusal]:
    """A site works when its owner lets it."""
    windows = case.policy.hours
    if not is_open(windows, case.now):
        when = f"here it is {case.now:%H:%M}, work begins again at {next_opening(windows, case.now)}"
        yield Refusal("hours", f"hours = {_listed(windows)}; {when}.", permanent=False)


RULES: tuple[Rule, ...] = (
    known_kind,
    server,
    model,
    data,
    task,
    strategy,
    protection,
    epsilon,
    delta,
    unit,
    amounts,
    approval,
    hours,
)


def _address(text: str) -> str:
    try:
        return normal_address(text)
    except ValueError:
        return text


def _listed(values: Iterable[object]) -> str:
    return f"[{names_in_short(values)}]"


def _shown(value: object) -> str:
    """A value that came over the network: bounded, on one line, without control characters."""
    return _short(repr(value) if not str(value).isprintable() else str(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
