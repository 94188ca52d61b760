"""Settings that are right one by one and contradict each other. One rule, one function; `RULES` lists them."""

from collections.abc import Iterator
from operator import attrgetter

from fedlora.config.buffering import BUFFERING, buffer_size
from fedlora.config.contradiction import Contradiction, Rule
from fedlora.config.schema import RunConfig
from fedlora.config.site_rules import (
    over_selection_of_sites,
    sites_are_clients,
    sites_are_not_exposed,
    sites_keep_what_is_theirs,
)
from fedlora.config.strategy import make_strategy
from fedlora.config.track import missing
from fedlora.config.virtual_rules import VIRTUAL
from fedlora.privacy.promises import refused


def contradictions(config: RunConfig) -> list[Contradiction]:
    """Everything in `config` that contradicts itself, by all rules."""
    return [found for rule in RULES for found in rule(config)]


def cohort_within_clients(config: RunConfig) -> Iterator[Contradiction]:
    """No more clients can be asked than there are."""
    federation = config.federation
    if federation.cohort > federation.clients:
        yield Contradiction(
            ("federation.cohort", "federation.clients"),
            f"federation.cohort = {federation.cohort} asks more clients in a round than there are"
            f" (federation.clients = {federation.clients}): lower one or raise the other",
        )


def reports_within_cohort(config: RunConfig) -> Iterator[Contradiction]:
    """No more clients can report than are asked, or than a buffered round waits for."""
    federation = config.federation
    if federation.buffered and federation.min_reports > buffer_size(config):
        yield Contradiction(
            ("federation.min_reports", "federation.buffer"),
            f"federation.min_reports = {federation.min_reports} can never be reached: a round is over after"
            f" federation.buffer = {buffer_size(config)} updates; lower one or raise the other",
        )
    elif not federation.buffered and federation.min_reports > federation.cohort:
        yield Contradiction(
            ("federation.min_reports", "federation.cohort"),
            f"federation.min_reports = {federation.min_reports} can never be reached: only"
            f" {federation.cohort} clients are asked in a round (federation.cohort)",
        )


# key → (the key it depends on, the values with which it means something, those with which it must be given)
_DEPENDENT: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "model.path": ("model.source", ("local",), ("local",)),
    "model.revision": ("model.source", ("hub",), ()),
    "model.architecture": ("model.source", ("config",), ("config",)),
    "model.gguf": ("model.source", ("asset", "hub", "local"), ()),
    "data.path": ("data.source", ("local",), ("local",)),
    "data.subset": ("data.source", ("hub",), ()),
    "data.revision": ("data.source", ("hub",), ()),
    "data.partition.column": ("data.partition.name", ("natural",), ("natural",)),
    "data.text": ("task.name", (), ("text_classification",)),
    "data.label": ("task.name", (), ("text_classification", "image_classification")),
    "data.prompt": ("task.name", (), ("causal_lm",)),
    "data.answer": ("task.name", (), ("causal_lm",)),
    "data.image": ("task.name", (), ("image_classification",)),
    "engine.address": ("engine.name", ("ray",), ()),
    "privacy.epsilon": ("privacy.name", ("dp", "central"), ()),
    "privacy.noise_multiplier": ("privacy.name", ("dp", "central"), ()),
    "privacy.participations": ("privacy.name", ("dp",), ()),
    "privacy.ceiling": ("privacy.name", ("dp",), ()),
    "privacy.ledgers": ("privacy.name", ("dp",), ()),
    "privacy.clip_quantile": ("privacy.name", ("central",), ()),
    "privacy.count_noise": ("privacy.name", ("central",), ()),
}


def dependent_keys(config: RunConfig) -> Iterator[Contradiction]:
    """Keys that another key's value needs, or makes meaningless. Columns of another task do no harm."""
    for key, (decider, useful, needed) in _DEPENDENT.items():
        given, value = attrgetter(key)(config), attrgetter(decider)(config)
        if given is None and value in needed:
            yield Contradiction((key, decider), f"{decider} = {value} needs {key}: set '{key}=…'")
        if given is not None and useful and value not in useful:
            yield Contradiction(
                (key, decider),
                f"{key} = {given} has no meaning with {decider} = {value}, only with {' or '.join(useful)}:"
                f" drop it or change {decider}",
            )


def architecture_is_named(config: RunConfig) -> Iterator[Contradiction]:
    """A model from its configuration alone needs to know which transformers class that is."""
    if config.model.architecture is not None and "model_type" not in config.model.architecture:
        yield Contradiction(
            ("model.architecture",), "model.architecture needs 'model_type', e.g. 'model.architecture.model_type=vit'"
        )


def label_for_skew(config: RunConfig) -> Iterator[Contradiction]:
    """Partitions by label need one. (The classification tasks need it anyway and say so.)"""
    partition = config.data.partition.name
    if partition in ("dirichlet", "shards") and config.data.label is None and config.task.name == "causal_lm":
        yield Contradiction(
            ("data.partition.name", "data.label", "task.name"),
            f"data.partition.name = {partition} deals rows by their label, and data.label is not set:"
            " set it, or choose data/partition=iid, natural, size_skew or bootstrap",
        )


def rows_for_clients(config: RunConfig) -> Iterator[Contradiction]:
    """A limited data set must still have rows for everyone."""
    data, clients = config.data, config.federation.clients
    if config.federation.sites:  # theirs are not the server's rows
        return
    each = {"dirichlet": data.partition.min_rows, "natural": 0, "bootstrap": 0}.get(data.partition.name, 1)
    if data.limit is not None and data.limit < clients * each:
        yield Contradiction(
            ("data.limit", "federation.clients", "data.partition.name", "data.partition.min_rows"),
            f"data.limit = {data.limit} rows are too few for {clients} clients with at least {each} each"
            f" (federation.clients, data.partition = {data.partition.name}): raise the limit or have fewer clients",
        )


def head_of_task(config: RunConfig) -> Iterator[Contradiction]:
    """Only text classification has two heads to choose from."""
    if config.model.head == "stock" and config.task.name != "text_classification":
        yield Contradiction(
            ("model.head", "task.name"),
            f"model.head = stock is a choice for text classification only; task.name = {config.task.name} has one"
            " head: drop it",
        )


def momentum_of_sgd(config: RunConfig) -> Iterator[Contradiction]:
    """AdamW would ignore it."""
    if config.train.momentum and config.train.optimizer != "sgd":
        yield Contradiction(
            ("train.momentum", "train.optimizer"),
            f"train.momentum = {config.train.momentum} is sgd's, and train.optimizer = {config.train.optimizer}:"
            " set 'train.optimizer=sgd' or drop it",
        )


def kept_prefix(config: RunConfig) -> Iterator[Contradiction]:
    """Kept states are one value for each record, in float32."""
    if config.train.keep_prefix and config.model.dropout:
        yield Contradiction(
            ("train.keep_prefix", "model.dropout"),
            "train.keep_prefix = true keeps what frozen layers give, which model.dropout = true changes with each step:"
            " set 'model.dropout=false' or drop it",
        )
    if config.train.keep_prefix and config.train.precision != "float32":
        yield Contradiction(
            ("train.keep_prefix", "train.precision"),
            f"train.keep_prefix = true keeps float32 values, which train.precision = {config.train.precision} would not"
            " give: set 'train.precision=float32' or drop it",
        )


def workers_of_processes(config: RunConfig) -> Iterator[Contradiction]:
    """Worker processes are forked: they compute with one thread each, and not on CUDA."""
    name, workers = config.engine.name, config.engine.workers
    if name == "sequential" and workers is not None:
        yield Contradiction(
            ("engine.workers", "engine.name"),
            f"engine.workers = {workers} has no meaning with engine.name = sequential, which trains in this process:"
            " drop it or set 'engine=processes'",
        )
    if name == "processes" and config.train.threads not in (None, 1):
        yield Contradiction(
            ("train.threads", "engine.name"),
            f"train.threads = {config.train.threads} contradicts engine.name = processes, whose workers have one thread"
            " each: drop it and set engine.workers, or set 'engine=sequential'",
        )
    if name == "processes" and config.train.device == "cuda":
        yield Contradiction(
            ("train.device", "engine.name"),
            "train.device = cuda contradicts engine.name = processes, whose workers share the model by fork, which CUDA"
            " does not allow: set 'engine=sequential' or train.device=cpu",
        )


def prepacked_on_a_cpu(config: RunConfig) -> Iterator[Contradiction]:
    """A GPU's kernels have no such layout."""
    if config.train.prepack and config.train.device == "cuda":
        yield Contradiction(
            ("train.prepack", "train.device"),
            "train.prepack = true with train.device = cuda: it lays weights out for a CPU's kernels; drop it",
        )


def noise_of_privacy(config: RunConfig) -> Iterator[Contradiction]:
    """Differential privacy is nothing without a size."""
    privacy = config.privacy
    if privacy.name != "none" and privacy.epsilon is None and privacy.noise_multiplier is None:
        yield Contradiction(
            ("privacy.epsilon", "privacy.noise_multiplier", "privacy.name"),
            f"privacy.name = {privacy.name} needs to know how private: set 'privacy.epsilon=3', to which the noise is"
            " made to fit, or 'privacy.noise_multiplier=1', whose epsilon `fedlora plan` then tells",
        )


def clipping_of_privacy(config: RunConfig) -> Iterator[Contradiction]:
    """Under DP-SGD every unit's gradient is clipped already."""
    if config.privacy.local and config.train.clip_norm is not None:
        yield Contradiction(
            ("train.clip_norm", "privacy.name"),
            f"train.clip_norm = {config.train.clip_norm} clips a batch's gradient; with privacy.name = dp each unit's"
            " is clipped instead: drop it and set privacy.clip",
        )


def unit_of_privacy(config: RunConfig) -> Iterator[Contradiction]:
    """Only DP-SGD knows units; under central DP the unit is the client."""
    if config.privacy.unit != "record" and not config.privacy.local:
        yield Contradiction(
            ("privacy.unit", "privacy.name"),
            f"privacy.unit = {config.privacy.unit} has no meaning with privacy.name = {config.privacy.name}, only with"
            " dp: drop it or set 'privacy=dp'",
        )


def quantile_of_count_noise(config: RunConfig) -> Iterator[Contradiction]:
    """The noise of a count that is not taken."""
    if config.privacy.count_noise is not None and config.privacy.clip_quantile is None:
        yield Contradiction(
            ("privacy.count_noise", "privacy.clip_quantile"),
            f"privacy.count_noise = {config.privacy.count_noise} has no meaning while the clip is fixed: set"
            " 'privacy.clip_quantile=0.5' or drop it",
        )


def holdout_of_clients(config: RunConfig) -> Iterator[Contradiction]:
    """Clients measure on rows that they do not train on."""
    if config.eval.where != "server" and not config.eval.holdout:
        yield Contradiction(
            ("eval.where", "eval.holdout"),
            f"eval.where = {config.eval.where} needs rows to measure on: set 'eval.holdout=0.2'",
        )


def central_without_clients_eval(config: RunConfig) -> Iterator[Contradiction]:
    """Clients' own figures are not noised under central DP, and so are not released."""
    if config.privacy.name == "central" and config.eval.where != "server":
        yield Contradiction(
            ("eval.where", "privacy.name"),
            f"eval.where = {config.eval.where} has no meaning with privacy.name = central, which releases nothing that"
            " single clients measure: set 'eval=server'",
        )


def privacy_of_method(config: RunConfig) -> Iterator[Contradiction]:
    """Combinations of method and privacy that could only pretend."""
    method = make_strategy(config.strategy)
    for row in refused(config, method):
        yield Contradiction(row.keys, f"privacy={config.privacy.name} with strategy={method.name}: {row.because}")


def trackers_are_installed(config: RunConfig) -> Iterator[Contradiction]:
    """What is to be written with a library needs the library."""
    for name, problem in missing(config.track.to):
        yield Contradiction(("track.to",), f"track.to names {name}, and {problem}")


RULES: tuple[Rule, ...] = (
    cohort_within_clients,
    reports_within_cohort,
    sites_are_clients,
    sites_keep_what_is_theirs,
    sites_are_not_exposed,
    over_selection_of_sites,
    *BUFFERING,
    *VIRTUAL,
    dependent_keys,
    architecture_is_named,
    label_for_skew,
    rows_for_clients,
    head_of_task,
    momentum_of_sgd,
    kept_prefix,
    workers_of_processes,
    prepacked_on_a_cpu,
    noise_of_privacy,
    clipping_of_privacy,
    unit_of_privacy,
    quantile_of_count_noise,
    holdout_of_clients,
    central_without_clients_eval,
    privacy_of_method,
    trackers_are_installed,
)
