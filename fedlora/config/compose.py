"""From groups, a file and overrides to one checked `RunConfig`.

What wins, from the weakest: the schema's defaults and the groups' options, the method's own defaults, an experiment,
the file, the command line. All mistakes are reported at once.

A file and overrides are the user's own words and may use Hydra's interpolation (`${seed}`). A configuration that came
over a network must only be read with `RunConfig.model_validate_json`, which interprets nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from fedlora.config.check import check
from fedlora.config.groups import Groups, session
from fedlora.config.said import Said, from_file, from_overrides
from fedlora.config.schema import RunConfig
from fedlora.config.sweep import expand
from fedlora.errors import ConfigError


def compose(overrides: Sequence[str] = (), *, config_dir: Path | None = None, file: Path | None = None) -> RunConfig:
    """One experiment.

    overrides: `KEY=VALUE` in Hydra's grammar, or `GROUP=OPTION`. config_dir: a folder with further options, laid out
    like fedlora's own groups (`data/mine.yaml`). file: YAML with the keys of the schema; a plain text for a group
    (`strategy: fed_sb`) chooses its option.
    Raises ConfigError with every mistake, each with the place where it was said.
    """
    with session(config_dir) as groups:
        return check(_from(file) + from_overrides(overrides), groups)


def compose_sweep(
    overrides: Sequence[str], *, config_dir: Path | None = None, file: Path | None = None
) -> list[tuple[list[str], RunConfig]]:
    """Every experiment of a sweep with the overrides that make it, in Hydra's order (the last key runs fastest).

    Raises ConfigError with every mistake of any of them, each once.
    """
    base = _from(file)
    with session(config_dir) as groups:
        results = [(job, _tried(base + from_overrides(job), groups)) for job in expand(overrides)]
    problems = [text for _, result in results if isinstance(result, ConfigError) for text in result.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    jobs = [(job, result) for job, result in results if isinstance(result, RunConfig)]
    _require_own_folders([config for _, config in jobs])
    return jobs


def expand_sweep(overrides: Sequence[str], *, config_dir: Path | None = None) -> list[list[str]]:
    """The overrides of each job of a sweep (`seed=0,1,2`, `range(0,5)`, `choice(a,b)`, `strategy=glob(*)`).

    Raises ConfigError with every override that cannot be read or counted out.
    """
    with session(config_dir):
        return expand(overrides)


def _require_own_folders(configs: Sequence[RunConfig]) -> None:
    folders = [config.output for config in configs if config.output is not None]
    shared = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if shared:
        raise ConfigError([f"output = {shared[0]}: several runs cannot share a folder; set 'store' instead"])


def _from(file: Path | None) -> Said:
    return Said() if file is None else from_file(file)


def _tried(said: Said, groups: Groups) -> RunConfig | ConfigError:
    try:
        return check(said, groups)
    except ConfigError as error:
        return error
