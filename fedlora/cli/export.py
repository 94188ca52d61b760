"""`fedlora export` and `fedlora merge`: a run's result as a PEFT checkpoint, or as an ordinary transformers model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.output import emit_json, stdout
from fedlora.cli.stores import open_store

if TYPE_CHECKING:  # heavy: torch, transformers
    from fedlora.adapters.peft_format import LoraFactors
    from fedlora.config.schema import RunConfig
    from fedlora.privacy.account import Account
    from fedlora.server.checkpoint import Checkpoint
    from fedlora.server.records import RunInfo
    from fedlora.tasks.base import Task

Store = Annotated[Path, typer.Option(help="The folder of the run store.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]
Output = Annotated[Path | None, typer.Option(help="Where to write; an earlier result there is replaced.")]


def register(app: typer.Typer) -> None:
    """Adds the two commands to `app`."""
    app.command("export")(export)
    app.command("merge")(merge)


def export(
    run: Annotated[str, typer.Argument(help="The run: `latest`, its id, name or folder.")],
    round_number: Annotated[int | None, typer.Option("--round", help="A committed round; by default the last.")] = None,
    output: Output = None,
    store: Store = Path("runs"),
    as_json: Json = False,
) -> None:
    """Write a run's adapter as a PEFT checkpoint that loads without fedlora.

    By default into the run's folder: `adapter`, or `adapter-round-N` for a chosen round.
    """
    from fedlora.adapters.export import export_adapter
    from fedlora.privacy.account import read_account
    from fedlora.strategies.base import global_tensors

    found = _open_run(store, run, round_number)
    default = "adapter" if round_number is None else f"adapter-round-{round_number}"
    folder = export_adapter(
        output or found.info.folder / default,
        manifest=found.checkpoint.state.manifest,
        tensors=global_tensors(found.checkpoint.state),
        task=found.task,
        config=found.config,
        summary=found.figures,
        account=read_account(found.info.folder),
    )
    _report(as_json, "adapter", folder, {"run": found.info.id, "round": found.checkpoint.round})


def merge(
    source: Annotated[str, typer.Argument(metavar="RUN|ADAPTER_DIR", help="A run, or a folder that `export` wrote.")],
    output: Output = None,
    store: Store = Path("runs"),
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base model: a folder that transformers loads without PEFT.

    By default into `merged` in the run's folder, or beside the adapter's folder with `-merged` after its name.
    """
    from fedlora.adapters.merge import merge_adapter
    from fedlora.adapters.peft_format import CONFIG_FILE

    found = _from_folder(Path(source)) if (Path(source) / CONFIG_FILE).is_file() else _from_run(store, source)
    folder = merge_adapter(
        found.task.load_base(),
        found.adapter,
        output or found.default,
        task=found.task,
        config=found.config,
        summary=found.figures,
        account=found.account,
    )
    _report(as_json, "merged model", folder, {"source": source})


@dataclass(frozen=True)
class _Run:
    info: "RunInfo"
    config: "RunConfig"
    task: "Task"
    checkpoint: "Checkpoint"

    @property
    def figures(self) -> Mapping[str, float]:
        """The figures of the checkpoint's round, and those of the run's end if that is its last round."""
        from fedlora.simulations.results import may_leave

        of_round = self.checkpoint.record.metrics
        found = {**of_round, **self.info.summary} if self.checkpoint.round == self.info.rounds else of_round
        return may_leave(self.config, found)


@dataclass(frozen=True)
class _Merge:
    adapter: "LoraFactors"
    task: "Task"
    config: "RunConfig"
    figures: Mapping[str, float]
    account: "Account | None"
    default: Path


def _open_run(store: Path, text: str, round_number: int | None) -> _Run:
    from fedlora.client.worker import worker_for
    from fedlora.config.schema import RunConfig
    from fedlora.errors import StoreError
    from fedlora.server import checkpoint

    with open_store(store) as runs:
        info = runs.find(text)
        last = runs.last_round(info)
    if last is None or not 0 <= (wanted := last if round_number is None else round_number) <= last:
        committed = "none is committed" if last is None else f"rounds 0 to {last} are committed"
        raise StoreError(f"run {info.id} has no round {round_number if last is not None else 0} to export: {committed}")
    config = RunConfig.model_validate_json(info.config)
    return _Run(info, config, worker_for(config).task, checkpoint.load(info.folder, wanted))


def _from_run(store: Path, text: str) -> _Merge:
    from fedlora.adapters.peft_format import fold
    from fedlora.privacy.account import read_account
    from fedlora.strategies.base import global_tensors

    run = _open_run(store, text, None)
    state = run.checkpoint.state
    adapter = fold(state.manifest, global_tensors(state))
    account = read_account(run.info.folder)
    return _Merge(adapter, run.task, run.config, run.figures, account, run.info.folder / "merged")


def _from_folder(folder: Path) -> _Merge:
    from fedlora.adapters.export import read_origin
    from fedlora.adapters.peft_format import read_adapter
    from fedlora.privacy.account import read_account
    from fedlora.tasks.registry import make_task

    config, labels, figures = read_origin(folder)
    default = folder.absolute().with_name(f"{folder.absolute().name}-merged")
    return _Merge(read_adapter(folder), make_task(config, labels), config, figures, read_account(folder), default)


def _report(as_json: bool, what: str, folder: Path, facts: Mapping[str, str | int]) -> None:
    if as_json:
        emit_json({"folder": str(folder.absolute()), **facts})
    else:
        stdout().print(f"Wrote the {what} to {folder}", markup=False, soft_wrap=True)
