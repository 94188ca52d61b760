"""What travels before round 1: the message that asks a client for a noised sketch of its first gradient."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from fedlora.adapters.manifest import Manifest
from fedlora.config.schema import RunConfig
from fedlora.wire import WireError, read_config, read_manifest


@dataclass(frozen=True)
class SketchTask:
    """What a client is asked: a noised sketch, `width` columns a module, of its first gradient."""

    run: str
    client: int
    config: RunConfig
    manifest: Manifest
    width: int
    receipt: str = ""
    deadline: float | None = None


def write_sketch_task(task: SketchTask) -> RecordDict:
    """The content of a sketch task's message."""
    fields = ConfigRecord(
        {
            "run": task.run,
            "client": task.client,
            "experiment": task.config.model_dump_json(),
            "manifest": task.manifest.to_json(),
            "width": task.width,
        }
    )
    return RecordDict({"sketch": fields})


def read_sketch_task(content: RecordDict) -> SketchTask:
    """The sketch task in a message's content. Raises WireError if it is incomplete or cannot be read."""
    try:
        fields = content.config_records["sketch"]
        return SketchTask(
            str(fields["run"]),
            int(str(fields["client"])),
            read_config(str(fields["experiment"])),
            read_manifest(str(fields["manifest"])),
            int(str(fields["width"])),
        )
    except KeyError as missing:
        raise WireError(f"the sketch task's message has no {missing}") from missing
    except (TypeError, ValueError) as error:
        raise WireError(f"the sketch task's message cannot be read: {error}") from error
