"""The typed schema of an experiment. One instance describes a run completely, for every engine.

Each field's description is its documentation: `docs/configuration.md` and the CLI's help are generated from it.
Values are checked here and nowhere else; `fedlora.config.compose` turns YAML and overrides into a `RunConfig`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedlora.config.computing import EngineConfig, TrainConfig
from fedlora.config.federation import FederationConfig
from fedlora.config.section import Name, Section
from fedlora.config.track import TrackConfig
from fedlora.config.virtual import VirtualConfig

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "FederationConfig",
    "ModelConfig",
    "Name",
    "PartitionConfig",
    "PrivacyConfig",
    "RunConfig",
    "Section",
    "StrategyConfig",
    "TaskConfig",
    "TrainConfig",
]


class ModelConfig(Section):
    """The base model: where it comes from, its head."""

    source: Literal["asset", "hub", "local", "config"] = Field(
        description="asset: a pinned package (`fedlora ls models`); hub: a Hugging Face name; local: a folder;"
        " config: random weights of an architecture, from the run's seed"
    )
    name: Name = Field(description="the asset's or the hub's name of the model, or a label for a local one")
    path: Path | None = Field(None, description="the folder, for source=local")
    revision: str | None = Field(None, description="a hub revision (branch, tag or commit)")
    gguf: str | None = Field(None, description="the GGUF file inside the model's folder, if its weights are in one")
    architecture: dict[str, Any] | None = Field(
        None, description="for source=config: `model_type` and the settings of its transformers configuration"
    )
    head: Literal["mean", "stock"] = Field(
        "mean",
        description="text classification: mean (average the tokens' logits) or stock (the architecture's own head)",
    )
    train_head: bool = Field(True, description="whether clients train the new head and send it")
    dropout: bool = Field(False, description="whether the base model's own dropout is on during local training")


class TaskConfig(Section):
    """What is learned."""

    name: Literal["text_classification", "causal_lm", "image_classification"] = Field(description="the kind of problem")
    max_length: int = Field(64, ge=1, description="tokens after which a text is cut")


class PartitionConfig(Section):
    """How the training rows are dealt to the clients."""

    name: Literal["iid", "dirichlet", "shards", "size_skew", "natural", "bootstrap"] = Field(
        description="the partitioner"
    )
    alpha: float = Field(0.5, gt=0, description="dirichlet: concentration; smaller is more skewed")
    min_rows: int = Field(10, ge=1, description="dirichlet: redraw until every client has at least this many rows")
    shards_per_client: int = Field(2, ge=1, description="shards: label-sorted shards each client gets")
    skew: Literal["linear", "square", "exponential"] = Field(
        "square", description="size_skew: how sizes grow with the client's number"
    )
    column: str | None = Field(None, description="natural: one client for each value of this column")
    rows: int = Field(100, ge=1, description="bootstrap: rows each client draws, with replacement")


class DataConfig(Section):
    """The data set, its columns, its splits and its partition."""

    source: Literal["asset", "hub", "local"] = Field(
        description="asset: from a pinned package (`fedlora ls data`); hub: a Hugging Face data set; local: files"
    )
    name: Name = Field(description="the asset's or the hub's name of the data set, or a label for a local one")
    path: Path | None = Field(None, description="source=local: CSV, JSONL, Parquet or a saved `datasets` folder")
    subset: str | None = Field(None, description="source=hub: the configuration name, e.g. sst2 of glue")
    revision: str | None = Field(None, description="source=hub: branch, tag or commit")
    text: str | None = Field(None, description="column with the text")
    text_pair: str | None = Field(None, description="column with a second text, for pair classification")
    label: str | None = Field(None, description="column with the label (a name or a number)")
    image: str | None = Field(None, description="column with the image")
    prompt: str | None = Field(None, description="causal LM: column with the question")
    answer: str | None = Field(None, description="causal LM: column with the answer, the only part with a loss")
    test_split: str | None = Field(None, description="name of a published test split; null: a fraction is held out")
    validation_split: str | None = Field(None, description="published validation split; null: a fraction of train")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="test rows, if there is no published split")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="validation rows, if there is no published split")
    deduplicate: bool = Field(True, description="drop repeated rows before splitting: no test row is trained on")
    limit: int | None = Field(None, ge=1, description="use only this many rows of each split, drawn with the seed")
    split_seed: int = Field(0, ge=0, description="seed of the split; not `seed`: repetitions share one test set")
    partition: PartitionConfig


class AdapterConfig(Section):
    """The low-rank adapter."""

    r: int = Field(8, ge=1, description="rank")
    alpha: float | None = Field(None, gt=0, description="LoRA's α; gives s = α/r. Null: `scaling` is s itself")
    scaling: float = Field(2.0, gt=0, description="s in ΔW = s·B·A, used where alpha is null")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input during local training")
    targets: tuple[Name, ...] | None = Field(
        None, description="last parts of the names of the modules to adapt; null: PEFT's default for the architecture"
    )

    @property
    def s(self) -> float:
        """The scaling that is in force."""
        return self.scaling if self.alpha is None else self.alpha / self.r


class StrategyConfig(BaseModel):
    """The server's method; other keys are the options of that method's class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Name = Field(description="`fedlora ls strategies` lists them")

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.model_extra or {})


class EvalConfig(Section):
    """When and on what the global model is measured."""

    every: int = Field(1, ge=1, description="rounds between evaluations on the validation split")
    batch: int = Field(64, ge=1, description="records in an evaluation batch")
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="part of each client's rows kept from training, to measure the model it receives; 0: it trains on"
        " all, and its loss on its first batch is all that is known of it",
    )
    where: Literal["server", "clients", "both"] = Field(
        "server", description="who measures: the server on its own split, the clients on their held-out rows, or both"
    )
    test: bool = Field(True, description="whether the test split is read, once, after the last round")


class PrivacyConfig(Section):
    """What is promised to those whose rows are trained on, and by whom it is kept."""

    name: Literal["none", "dp", "central"] = Field(
        description="none: no differential privacy; dp: each client trains with DP-SGD, and what it sends is private"
        " towards everyone; central: a trusted server adds noise to the sum of clipped updates, client by client",
    )
    epsilon: float | None = Field(
        None, gt=0, description="ε that a whole run may spend (of each client for dp); the noise is made to fit"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="δ; usual: well below one over the number of units")
    noise_multiplier: float | None = Field(
        None, gt=0, description="σ: noise over sensitivity. With epsilon too, the run is refused if σ does not keep it"
    )
    clip: float = Field(1.0, gt=0, description="C: bound on the norm of a unit's gradient (central: of an update)")
    rate: float = Field(
        0.1,
        gt=0,
        le=1,
        description="dp: q, with which each unit is in a step's sample. Public: never computed from private counts",
    )
    unit: Name = Field(
        "record", description="dp: what is protected: record, or the column whose values name the unit (patient, …)"
    )
    unit_rows: int = Field(8, ge=1, description="dp: rows of one unit that are used at most")
    participations: int | None = Field(
        None, ge=1, description="dp: rounds after which a client declines, which sets the noise; null: every round"
    )
    accountant: Literal["pld", "prv", "rdp"] = Field("pld", description="what sums up the releases of a run")
    noise: Literal["system", "seeded"] = Field(
        "system",
        description="system: the operating system's entropy; seeded: repeatable, for simulations, without a guarantee",
    )
    micro_batch: int = Field(64, ge=1, description="dp: rows in one forward pass; the result does not depend on it")
    eval_noise: float = Field(
        20.0, gt=0, description="dp: σ of the noised counts with which clients measure (eval.where)"
    )
    ceiling: float | None = Field(
        None, gt=0, description="dp: ε at which a simulated client's owner lets it decline; null: what the run needs"
    )
    ledgers: Path | None = Field(
        None, description="dp: a folder with the simulated clients' ledgers; null: `ledgers` in the run's own folder"
    )
    clip_quantile: float | None = Field(
        None, gt=0, lt=1, description="central: adapt C so that this part of the updates is below it; null: C is fixed"
    )
    clip_rate: float = Field(0.2, gt=0, description="central: how fast C adapts")
    count_noise: float | None = Field(
        None, gt=0, description="central: noise of the count that C is adapted by; null: a twentieth of the cohort"
    )

    @property
    def local(self) -> bool:
        """Whether clients noise what they send."""
        return self.name == "dp"


class RunConfig(Section):
    """A whole experiment."""

    name: str | None = Field(None, description="a name for the run; null: one is made from strategy and data")
    seed: int = Field(0, ge=0, lt=2**63, description="decides everything that is drawn")
    store: Path = Field(Path("runs"), description="the folder of the run store")
    output: Path | None = Field(None, description="the run's own folder; null: one inside the store")
    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    adapter: AdapterConfig
    strategy: StrategyConfig
    train: TrainConfig
    federation: FederationConfig
    eval: EvalConfig
    privacy: PrivacyConfig = Field(default_factory=lambda: PrivacyConfig.model_validate({"name": "none"}))
    engine: EngineConfig
    virtual: VirtualConfig = Field(default_factory=lambda: VirtualConfig.model_validate({}))
    track: TrackConfig = Field(default_factory=lambda: TrackConfig.model_validate({}))
