"""Exports one committed round of a run, in a process of its own: it loads torch, and takes it along when it ends.

    python -m fedlora.server.dashboard.export_round RUN_FOLDER ROUND OUTPUT_FOLDER

Unlike `fedlora export` it needs no database: a server's may be on another host.
"""

import sys
from pathlib import Path

from fedlora.errors import FedloraError


def export(folder: Path, wanted: int, output: Path) -> Path:
    """Writes the adapter as a PEFT checkpoint and returns its folder.

    Raises StoreError if the run's configuration or checkpoint cannot be read, ModelError if it cannot be exported.
    """
    from fedlora.adapters.export import export_adapter
    from fedlora.client.worker import worker_for
    from fedlora.config.schema import RunConfig
    from fedlora.privacy.account import read_account
    from fedlora.server import checkpoint
    from fedlora.server.durable import explained
    from fedlora.server.store.folders import CONFIG
    from fedlora.simulations.results import may_leave
    from fedlora.strategies.base import global_tensors

    with explained("read the configuration", folder / CONFIG):
        config = RunConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    found = checkpoint.load(folder, wanted)
    return export_adapter(
        output,
        manifest=found.state.manifest,
        tensors=global_tensors(found.state),
        task=worker_for(config).task,
        config=config,
        summary=may_leave(config, found.record.metrics),
        account=read_account(folder),
    )


def main(arguments: list[str]) -> int:
    """The command; 1 and one sentence if it could not be done."""
    folder, wanted, output = arguments
    try:
        export(Path(folder), int(wanted), Path(output))
    except FedloraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
