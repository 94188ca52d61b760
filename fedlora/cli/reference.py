"""What `fedlora simulate --help` adds: the config groups, the common keys, what Hydra's users know."""

from collections.abc import Sequence

import click

_COMMON = (
    *("seed", "name", "output", "store"),
    *("adapter.r", "adapter.alpha", "adapter.targets"),
    *("train.lr", "train.optimizer", "train.batch", "train.steps", "train.threads", "train.device"),
    *("federation.clients", "federation.cohort", "federation.rounds", "federation.weighting"),
    *("data.path", "data.limit", "data.partition.alpha", "model.head", "eval.every", "eval.test"),
)

_HYDRA = (
    ("GROUP=OPTION", "choose from a group; KEY=VALUE sets one value, and wins over everything else"),
    ("--multirun, -m", "a sweep: seed=0,1,2 or 'seed=range(0,5)' or 'data=choice(trec,movie)' or 'strategy=glob(*)'"),
    ("--config-dir DIR", "groups of your own beside fedlora's, e.g. DIR/data/mine.yaml for data=mine"),
    ("--cfg job", "print the composed configuration and stop"),
    ("${key}", "refer to another key's value, in an override in single quotes or in a file"),
)

_EXAMPLES = (
    "fedlora simulate strategy=fed_sb adapter.r=32 federation.clients=50 data.partition.alpha=0.1",
    "fedlora simulate -m strategy=fedavg,ffa_lora,lora_fair,fed_sb seed=0,1,2 --jobs 2",
    "fedlora simulate --resume latest federation.rounds=20",
)


def write_reference(formatter: click.HelpFormatter) -> None:
    """Writes the groups with their options, the common keys with their defaults, Hydra's flags and examples."""
    from fedlora.config.groups import defaults, session
    from fedlora.config.keys import keys
    from fedlora.config.said import GROUPS

    with session() as groups:
        chosen = defaults()
        rows = [(group, _options(groups.options(group), chosen.get(group))) for group in GROUPS]
    _section(formatter, "Config groups (* is the default)", rows)
    table = [keys()[name] for name in _COMMON]
    _section(
        formatter,
        "Common keys (all of them: fedlora ls keys)",
        [(key.name, f"{key.description} [{key.type}; default {key.default}]") for key in table],
    )
    _section(formatter, "Hydra", _HYDRA)
    _section(formatter, "Examples", [(example, "") for example in _EXAMPLES])


def _options(options: tuple[str, ...], default: str | None) -> str:
    return ", ".join(f"{option}*" if option == default else option for option in options)


def _section(formatter: click.HelpFormatter, title: str, rows: Sequence[tuple[str, str]]) -> None:
    with formatter.section(title):
        formatter.write_dl(rows, col_max=28)
