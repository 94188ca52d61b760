import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedlora.errors import StoreError
from fedlora.server import checkpoint
from fedlora.server.checkpoint import STEPS, Checkpoint, commit, last_committed, load, round_folder, save, saved_rounds
from fedlora.server.records import RoundRecord, RunInfo
from fedlora.server.store import RunStore
from fedlora.strategies.base import State

DTYPES = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
TENSORS = st.dictionaries(
    st.text("abc.0_", min_size=1, max_size=8),
    st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=4,
)
NUMBERS = st.dictionaries(st.text("abc", max_size=3), st.floats(), max_size=3)


def test_a_commit_can_be_read_back(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    for number in range(3):
        commit(store, run, samples.checkpoint(number))
    for number in range(3):
        samples.assert_same(load(run.folder, number), samples.checkpoint(number))
    found = last_committed(store, run)
    assert found is not None
    assert found.record == store.history(run).rounds[-1]
    assert found.record.committed_at is not None


def test_the_files_are_those_of_the_layout(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    folder = commit(store, run, samples.checkpoint(0))
    assert folder == run.folder / "checkpoints" / "round-0000"
    assert set(samples.tree(folder)) == {
        *("adapter.safetensors", "server.safetensors", "manifest.json", "rng.json", "roster.json", "metrics.json"),
        *("clients/0.safetensors", "clients/1.safetensors", "clients/2.safetensors", "complete.json"),
    }
    assert (run.folder / "fixed.safetensors").is_file()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TENSORS, TENSORS, TENSORS, st.dictionaries(st.integers(0, 99), TENSORS, max_size=3), NUMBERS)
def test_every_checkpoint_survives_the_disk(
    tmp_path: Path, samples: ModuleType, shared, fixed, server, clients, metrics
) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state = State(samples.manifest(), shared, fixed, server)
    point = Checkpoint(
        1, state, RoundRecord(1, metrics, samples.record(1).roster), clients, {"seed": 3, "more": [None]}
    )
    save(folder, point)
    found = load(folder, 1)
    samples.assert_same(replace(found, record=point.record), point)
    assert {name: np.float64(value).tobytes() for name, value in found.record.metrics.items() if value == value} == {
        name: np.float64(value).tobytes() for name, value in metrics.items() if value == value
    }
    assert found.record.metrics.keys() == metrics.keys()
    assert found.record.roster == point.record.roster


def test_views_and_byte_orders_keep_their_values(tmp_path: Path, samples: ModuleType) -> None:
    base = np.arange(24, dtype=np.float64).reshape(4, 6)
    odd = {"transposed": base.T, "strided": base[::2, 1::3], "big": base.astype(">f8"), "scalar": np.float64(0.1)}
    point = replace(samples.checkpoint(0), state=State(samples.manifest(), odd))
    save(tmp_path, point)
    found = load(tmp_path, 0).state.shared
    for name, array in odd.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape
        assert found[name].flags.writeable


@pytest.mark.parametrize(
    "name",
    ["adapter.safetensors", "server.safetensors", "clients/1.safetensors", "rng.json", "roster.json", "complete.json"],
)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named_with_the_newest_good_round(
    store: RunStore, run: RunInfo, samples: ModuleType, name: str, harm: str
) -> None:
    for number in range(4):
        commit(store, run, samples.checkpoint(number))
    for number in (2, 3):
        _harm(round_folder(run.folder, number) / name, harm)
    with pytest.raises(StoreError, match=f"round-0003/{re.escape(name)} .*good round before it is round 1"):
        last_committed(store, run)
    store.discard_after(run, 1)
    found = last_committed(store, run)
    assert found is not None
    samples.assert_same(found, samples.checkpoint(1))
    assert saved_rounds(run.folder) == [0, 1]


def _harm(path: Path, harm: str) -> None:
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(data[:-1])
    else:
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])


def test_damaged_fixed_tensors_are_named(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    commit(store, run, samples.checkpoint(0))
    _harm(run.folder / "fixed.safetensors", "flip")
    with pytest.raises(StoreError, match=r"fixed\.safetensors is damaged .*no earlier round is good"):
        last_committed(store, run)


def test_a_seal_cannot_name_files_elsewhere(tmp_path: Path, samples: ModuleType) -> None:
    folder = save(tmp_path, samples.checkpoint(0))
    seal = json.loads((folder / "complete.json").read_text())
    seal["files"]["clients/../../../../secret.safetensors"] = "0" * 64
    (folder / "complete.json").write_text(json.dumps(seal))
    with pytest.raises(StoreError, match="does not list the files of a checkpoint"):
        load(tmp_path, 0)


def test_fixed_tensors_are_written_once(tmp_path: Path, samples: ModuleType) -> None:
    save(tmp_path, samples.checkpoint(0))
    path = tmp_path / "fixed.safetensors"
    before = (path.stat().st_ino, path.stat().st_mtime_ns)
    save(tmp_path, samples.checkpoint(1))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_fixed_tensors_may_not_change(tmp_path: Path, samples: ModuleType) -> None:
    save(tmp_path, samples.checkpoint(0))
    point = samples.checkpoint(1)
    changed = replace(point.state, fixed={name: array + 1 for name, array in point.state.fixed.items()})
    with pytest.raises(StoreError, match="fixed tensors of the run changed"):
        save(tmp_path, replace(point, state=changed))
    assert saved_rounds(tmp_path) == [0]
    assert list((tmp_path / "checkpoints").glob(".*")) == []
    samples.assert_same(load(tmp_path, 0), samples.checkpoint(0))


def test_fixed_tensors_of_a_run_that_died_before_its_first_round_are_replaced(
    tmp_path: Path, samples: ModuleType
) -> None:
    point = samples.checkpoint(0)
    save(tmp_path, replace(point, state=replace(point.state, fixed={"old": np.ones(3)})))
    shutil.rmtree(tmp_path / "checkpoints")
    save(tmp_path, point)
    samples.assert_same(load(tmp_path, 0), point)


def test_a_saved_round_is_never_written_over(tmp_path: Path, samples: ModuleType) -> None:
    save(tmp_path, samples.checkpoint(0))
    before = samples.tree(tmp_path)
    with pytest.raises(StoreError, match="round 0 is saved already"):
        save(tmp_path, samples.checkpoint(0))
    assert samples.tree(tmp_path) == before


def test_a_record_of_another_round_is_refused(tmp_path: Path, samples: ModuleType) -> None:
    with pytest.raises(StoreError, match="round 1 has the record of round 2"):
        save(tmp_path, replace(samples.checkpoint(1), record=samples.record(2)))


def test_no_round_gives_no_checkpoint(store: RunStore, run: RunInfo) -> None:
    assert last_committed(store, run) is None


def test_a_round_without_a_row_is_removed(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    commit(store, run, samples.checkpoint(0))
    save(run.folder, samples.checkpoint(1))
    found = last_committed(store, run)
    assert found is not None
    assert found.round == 0
    assert saved_rounds(run.folder) == [0]
    commit(store, run, samples.checkpoint(1))


def test_a_row_without_its_folder_is_an_error(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    for number in range(2):
        commit(store, run, samples.checkpoint(number))
    shutil.rmtree(round_folder(run.folder, 1))
    with pytest.raises(StoreError, match=r"round-0001/complete\.json is missing; .*round 0"):
        last_committed(store, run)


def test_steps_are_passed_in_order(
    store: RunStore, run: RunInfo, samples: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(checkpoint, "passed", steps.append)
    commit(store, run, samples.checkpoint(0))
    assert tuple(steps) == STEPS
