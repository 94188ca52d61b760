"""The folder of a run: claiming it for a new run, and the configuration in it."""

import json
from pathlib import Path

from fedlora.config.schema import RunConfig
from fedlora.errors import StoreError
from fedlora.server.durable import explained, replace_synced, sync_folder

CONFIG = "config.json"


def config_text(config: RunConfig) -> str:
    """The resolved configuration as indented JSON, keys in the schema's order, so that `diff` can compare two."""
    return config.model_dump_json(indent=2) + "\n"


def with_rounds(config: str, rounds: int) -> str:
    """The text of a configuration with another number of rounds."""
    raw = json.loads(config)
    raw["federation"]["rounds"] = rounds
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def claim(folder: Path) -> None:
    """Makes `folder` for a new run. Raises StoreError if something is in it, or it cannot be made.

    Of two processes that want one folder, one gets it: the configuration's file is made by whoever comes first.
    """
    with explained("make the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in folder.iterdir())
    if not found:
        with explained("make a new run in", folder):
            (folder / CONFIG).touch(exist_ok=False)
        return
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    raise StoreError(
        f"the folder {folder} is not empty (it has {shown}): a run needs a folder of its own; choose another one,"
        " or resume the run that is there (`--resume`)"
    )


def write_config(folder: Path, text: str) -> None:
    """Puts the configuration into a run's folder."""
    path = folder / CONFIG
    with explained("write", path, needed=len(text)):
        replace_synced(path, text.encode())
        sync_folder(folder.parent)


def abandon(folder: Path) -> None:
    """Takes back a claim: the configuration and the folder go, unless something else has come into it."""
    (folder / CONFIG).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
