"""docs/run-store.md says what the code does."""

import dataclasses
import re
from pathlib import Path
from types import ModuleType

import pytest

from fedlora.server.checkpoint import STEPS, commit
from fedlora.server.events import EVENTS
from fedlora.server.records import Outcome, RosterRow, RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.server.store.tables import metadata

PAGE = (Path(__file__).parents[2] / "docs" / "run-store.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """The table whose first column is called `heading`: first cell → the words in code quotes of the rest."""
    table = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    cells = [line.strip("| ").split("|", 1) for line in table.splitlines()[2:]]
    return {name.strip(" `"): re.findall(r"`([^`]+)`", rest) for name, rest in cells}


def test_every_event_is_listed_with_its_fields() -> None:
    code = {
        kind.event: [field.name for field in dataclasses.fields(kind) if field.name not in ("event", "run", "time")]
        for kind in EVENTS
    }
    assert rows("event") == code


def test_every_step_is_listed_in_order() -> None:
    assert tuple(rows("step")) == STEPS


def test_every_table_is_listed_with_its_key() -> None:
    code = {table.name: [column.name for column in table.primary_key] for table in metadata.sorted_tables}
    assert rows("table") == code


def test_every_field_of_a_roster_row_is_listed() -> None:
    line = re.search(r"`row` is a line of the roster: ([^.]+)\.", PAGE)
    assert line
    assert re.findall(r"`([^`]+)`", line[1]) == [field.name for field in dataclasses.fields(RosterRow)]


@pytest.mark.parametrize("word", [*RunStatus, *Outcome])
def test_every_status_and_outcome_is_explained(word: str) -> None:
    assert f"`{word}`" in PAGE


def test_every_file_of_a_run_is_in_the_layout(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    with store.lock(run):
        commit(store, run, samples.checkpoint(0))
        found = {
            re.sub(r"\d+(?=\.safetensors)", "<n>", path.name) for path in store.folder.rglob("*") if path.is_file()
        }
    layout = PAGE.split("```")[1]
    assert {name for name in found if name not in layout and not name.startswith("fedlora.db-")} == set()
    assert {"complete.json", ".holder.json", "<n>.safetensors", "fixed.safetensors"} <= found
