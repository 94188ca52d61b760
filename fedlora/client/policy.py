"""A site policy: what a data owner allows. Whatever it does not allow is declined, whoever asks.

The file is `policy.yaml` in the site's home folder, read by `fedlora.client.policy_file.load_policy`. Each field's
description is its documentation: `docs/site-policy.md` is made from them.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from fedlora.client.address import normal_address
from fedlora.client.hours import Window
from fedlora.config.keys import Key, did_you_mean, nearest, object_keys
from fedlora.config.schema import Name, Section

TaskName = Literal["text_classification", "causal_lm", "image_classification"]
NEEDED: Mapping[str, tuple[str, ...]] = {
    "text_classification": ("text", "label"),
    "causal_lm": ("prompt", "answer"),
    "image_classification": ("image", "label"),
}
"""The roles that each task needs a column for."""

NAME = "NAME"
"""Stands for an owner's name of a model or data set in the names of keys."""

METRICS = (
    "samples",
    "loss",
    "first_loss",
    "seconds",
    "holdout_loss",
    "holdout_accuracy",
    "holdout_token_accuracy",
    "holdout_rows",
)
"""What a client measures without DP: `samples` is the exact number of its rows, `holdout_…` is on its held-out rows."""

_HOLDOUT = re.compile(r"holdout_[a-z0-9_]+")


def _window(text: str) -> str:
    Window.parse(text)
    return text


def _metric(name: str) -> str:
    if name not in METRICS and not _HOLDOUT.fullmatch(name):
        raise ValueError(f"is nothing that a client measures{did_you_mean(nearest(name, METRICS)).rstrip('.')}")
    return name


Address = Annotated[str, AfterValidator(normal_address)]
Hours = Annotated[str, AfterValidator(_window)]
Metric = Annotated[str, AfterValidator(_metric)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Telling = Literal["data", "policy", "device"]
Group = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Placed(Section):
    """Something that the owner has a copy of."""

    source: Literal["local", "asset", "hub"] = Field(
        description="local: a file or folder of this site; asset: a pinned package (`fedlora ls models`, `fedlora ls"
        " data`); hub: the Hugging Face hub"
    )
    path: Name | None = Field(
        None,
        description="local: where it is, relative to this file's folder or absolute; asset, hub: its name there, if it"
        " is not the run's name for it. Never told to a server",
    )
    revision: Name | None = Field(None, description="hub: branch, tag or commit; better a commit")

    @model_validator(mode="after")
    def _local_has_a_path(self) -> Self:
        if self.source == "local" and self.path is None:
            raise ValueError("source = local needs path")
        return self

    def place(self, folder: Path) -> Path | None:
        """Where a local one is, if this file's folder is `folder`; None for one that is not local."""
        return folder / self.path if self.source == "local" and self.path is not None else None


class ModelRule(Placed):
    """A base model that runs may use, by the runs' name for it (`model.name`)."""

    gguf: Name | None = Field(None, description="the GGUF file inside the folder, if the weights are in one")
    sha256: Digest | None = Field(
        None,
        description="digest of the base model's weights on which the owner insists (64 hexadecimal digits, as fedlora"
        " computes it); null: any",
    )


class Columns(Section):
    """Which column has which role. A role that has none here cannot be read by any run."""

    text: Name | None = Field(None, description="the column with the text")
    text_pair: Name | None = Field(None, description="the column with a second text")
    label: Name | None = Field(None, description="the column with the label")
    prompt: Name | None = Field(None, description="the column with the question")
    answer: Name | None = Field(None, description="the column with the answer")
    image: Name | None = Field(None, description="the column with the image")

    def mapped(self) -> dict[str, str]:
        """Role → this site's column."""
        return {role: str(column) for role, column in self if column is not None}


class DataRule(Placed):
    """A data set that runs may train on, by the runs' name for it (`data.name`)."""

    columns: Columns = Field(description="role → this site's column, whatever a run calls it")
    labels: tuple[Name, ...] | None = Field(
        None, description="the names of the classes in the order of their ids; null: not compared with the run's"
    )
    nominal_size: int | None = Field(
        None, ge=1, description="how many rows there are, rounded by the owner: it is public; null: not told"
    )
    budget: Group = Field(
        "site",
        description="the ledger (`ledgers/BUDGET`) that counts what is spent of it. Data sets that may hold the same"
        " people need the same one",
    )
    units: tuple[Name, ...] | None = Field(
        None,
        description="`record` or columns: what runs under local DP may protect as one unit; null: privacy.unit; []: no"
        " run under local DP",
    )
    tasks: tuple[TaskName, ...] | None = Field(
        None, description="what may be learned of it; null: all that its columns suffice for"
    )

    @model_validator(mode="after")
    def _columns_suffice(self) -> Self:
        mapped = self.columns.mapped()
        possible = [task for task, roles in NEEDED.items() if set(roles) <= set(mapped)]
        problems = [
            f"tasks has {task}, which needs columns for {_and(NEEDED[task])}"
            for task in self.tasks or ()
            if task not in possible
        ]
        if not possible:
            problems.append(f"columns must name {', or '.join(_and(roles) for roles in NEEDED.values())}")
        if len(set(mapped.values())) < len(mapped):
            problems.append("columns gives one column two roles")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PrivacyRule(Section):
    """The least protection that the owner insists on. A ledger has limits of its own, for all runs together."""

    require: Literal["none", "central", "dp"] = Field(
        "dp",
        description="none: updates may leave as they are; central: at least a server that promises to add noise; dp:"
        " only what this site has noised itself. Noise from a seed counts as none",
    )
    epsilon_run: float | None = Field(
        None, gt=0, description="the largest ε of one run; null: the ledger's limits alone"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="the largest δ of one run")
    unit: Name = Field(
        "record",
        description="what one unit is at this site: `record`, or the column that says whose a row is. Local DP with"
        " another unit is declined: what is spent of rows and of people cannot be added up",
    )
    ledgers: Name | None = Field(
        None,
        description="the folder with the ledgers, relative to this file's folder or absolute; null: `ledgers` in the"
        " home. Homes of one owner (one for each server) that may hold the same people must name the same folder",
    )
    receipt_key: Digest | None = Field(
        None,
        description="the server's public key for receipts (Ed25519, 64 hexadecimal digits), if the owner pins it; null:"
        " any",
    )


class Limits(Section):
    """What training may take of this machine, and what must be free before it begins."""

    threads: int | None = Field(None, ge=1, description="threads that training uses at most; null: as the run says")
    memory_mb_free_least: float | None = Field(None, ge=0, description="MB (10⁶ bytes) of memory that must be free")
    disk_mb_free_least: float | None = Field(None, ge=0, description="MB that must be free on the home folder's disk")
    cpu_busy_most: float | None = Field(
        None, gt=0, le=100, description="percent of all cores that others may use when work begins"
    )


class LogRule(Section):
    """The site's own log, which never travels."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is written")
    megabytes: float = Field(10, gt=0, description="size at which a new file is begun")
    files: int = Field(5, ge=1, description="older files that are kept")


class Policy(Section):
    """All that a data owner allows."""

    servers: tuple[Address, ...] = Field(
        (), description="addresses (`host:port`) that work is taken from; []: only the one that was joined"
    )
    models: dict[Name, ModelRule] = Field(default_factory=dict, description="base models that runs may use")
    data: dict[Name, DataRule] = Field(default_factory=dict, description="data sets that runs may train on")
    tasks: tuple[TaskName, ...] | None = Field(None, description="what may be learned; null: all")
    strategies: tuple[Name, ...] | None = Field(None, description="methods (`fedlora ls strategies`); null: all")
    privacy: PrivacyRule = Field(default_factory=lambda: PrivacyRule.model_validate({}))
    rounds_max: int | None = Field(None, ge=1, description="rounds of a run at most; null: any number")
    steps_max: int | None = Field(None, ge=1, description="steps in a round at most; null: any number")
    batch_max: int | None = Field(None, ge=1, description="records in a step at most; null: any number")
    hours: tuple[Hours, ...] = Field(
        (),
        description="times of day, local, at which work is begun, e.g. `20:00-06:00`; work in hand is finished; []:"
        " always",
    )
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    tells: tuple[Telling, ...] = Field(
        ("data", "policy"),
        description="what the server is told when the client connects, to be shown to its operator. data: the data"
        " sets' names and nominal_size, with a fingerprint that only this site can make; policy: models, tasks,"
        " strategies, privacy, the size of a run, hours and approval, in the words of a refusal; device: cores, memory"
        " and GPU; []: none of them",
    )
    metrics: tuple[Metric, ...] = Field(
        (),
        description="what may leave beside an update in a run without local DP, each by its name: samples (the exact"
        " number of rows), loss, first_loss, seconds, holdout_loss, holdout_accuracy, holdout_token_accuracy,"
        " holdout_rows. Under local DP only noised and accounted figures leave, whatever stands here",
    )
    approval: Literal["first_run", "automatic"] = Field(
        "first_run",
        description="first_run: a run waits until the owner approves it, once (`fedlora client approve RUN`);"
        " automatic: what this policy allows needs no approval",
    )
    log: LogRule = Field(default_factory=lambda: LogRule.model_validate({}))


@cache
def policy_keys() -> Mapping[str, Key]:
    """Every key, dotted; NAME stands for the owner's name of a model or data set."""
    found = object_keys(Policy.model_json_schema(), "")
    for section, rule in (("models", ModelRule), ("data", DataRule)):
        found |= object_keys(rule.model_json_schema(), f"{section}.{NAME}.")
    return found


def _and(roles: tuple[str, ...]) -> str:
    return " and ".join(roles)
