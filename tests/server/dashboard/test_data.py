"""What pages fetch: its shape, who gets it, and that JSON has no NaN."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlora.server.dashboard.download import REPORT_POLICY, exported
from fedlora.server.store import RunStore
from tests.server.dashboard.asking import OPERATOR, VIEWER, Dashboard, dashboard, site_of
from tests.server.dashboard.stores import HOSTILE_KEY, make_run
from tests.server.dashboard.test_pages import CENTRAL


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def shown(store: RunStore) -> Dashboard:
    return dashboard(store)


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_run_has_all_that_its_page_shows(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, metrics={HOSTILE_KEY: math.nan})
    found = strict(shown.get(f"/data/runs/{run.id}").text)
    assert found["row"]["id"] == run.id
    columns = found["series"]["columns"]
    assert columns["round"] == [0, 1, 2, 3, 4, 5]
    assert {len(column) for column in columns.values()} == {6}
    assert columns[HOSTILE_KEY] == [None] * 6
    assert set(columns) <= set(found["series"]["labels"])
    assert found["roster_metrics"] == ["loss"]
    assert found["rosters"] is True
    (row,) = strict(shown.get("/data/runs").text)["runs"]
    assert row["metric"] == pytest.approx(0.85)


def test_matrix_rosters_and_spread_agree(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, clients=4, rounds=6)
    matrix = strict(shown.get(f"/data/runs/{run.id}/matrix").text)
    assert matrix["clients"] == [f"hospital-{number:03d}" for number in range(4)]
    roster = strict(shown.get(f"/data/runs/{run.id}/rounds/3").text)["roster"]
    letters = {word: letter for letter, word in matrix["legend"].items()}
    assert [letters[line["outcome"]] for line in roster] == [
        cells[matrix["rounds"].index(3)] for cells in matrix["cells"]
    ]
    spread = strict(shown.get(f"/data/runs/{run.id}/spread?metric=loss").text)
    assert spread["n"][spread["round"].index(3)] == sum(line["outcome"] == "reported" for line in roster)


def test_one_answer_has_what_a_page_shows_after_a_commit(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, clients=4, rounds=6)
    path = f"/data/runs/{run.id}"
    found = strict(shown.get(f"{path}?matrix=1&spread=loss").text)
    assert found["matrix"] == strict(shown.get(f"{path}/matrix").text)
    assert found["spread"] == strict(shown.get(f"{path}/spread?metric=loss").text)
    assert strict(shown.get(path).text) == {**found, "matrix": None, "spread": None}
    assert strict(shown.get(f"{path}?spread=other").text)["spread"] is None


def test_virtual_clients_have_numbers(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, sites=False)
    assert strict(shown.get(f"/data/runs/{run.id}/matrix").text)["clients"] == ["0", "1", "2"]


def test_two_hundred_clients_fit_into_one_answer(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, clients=200, rounds=15)
    packed = shown.get(f"/data/runs/{run.id}/matrix")
    assert packed.headers["content-encoding"] == "gzip"
    found = strict(packed.text)
    assert [len(cells) for cells in found["cells"]] == [len(found["rounds"])] * 200


@pytest.mark.parametrize("part", ["matrix", "rounds/1", "spread?metric=loss", "events"])
def test_under_central_privacy_rosters_are_the_operators(shown: Dashboard, store: RunStore, part: str) -> None:
    run = make_run(store, **CENTRAL)
    refused = shown.get(f"/data/runs/{run.id}/{part}", VIEWER)
    assert refused.status_code == 403
    assert "central differential privacy" in strict(refused.text)["error"]["message"]
    assert shown.get(f"/data/runs/{run.id}/{part}", OPERATOR).status_code == 200


def test_under_central_privacy_no_number_tells_who_took_part(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, **CENTRAL)
    found = strict(shown.get(f"/data/runs/{run.id}", VIEWER).text)
    assert not {"bytes_up", "reported", "seconds"} & set(found["series"]["columns"])
    assert found["row"]["bytes_up"] is None
    assert found["roster_metrics"] == []
    more = strict(shown.get(f"/data/runs/{run.id}?matrix=1&spread=loss", VIEWER).text)
    assert (more["matrix"], more["spread"]) == (None, None)
    assert shown.get(f"/runs/{run.id}/report", VIEWER).status_code == 403


def test_configurations_and_their_difference(shown: Dashboard, store: RunStore) -> None:
    one, other = make_run(store, seed=0), make_run(store, seed=1)
    found = strict(shown.get(f"/data/runs/{one.id}/config?other={other.id}").text)
    assert {"key": "seed", "value": 0} in found["config"]
    assert [entry["key"] for entry in found["difference"]] == ["seed"]


def test_comparisons_in_json_and_csv(shown: Dashboard, store: RunStore) -> None:
    ids = [make_run(store, seed=seed).id for seed in (0, 1)]
    query = "&".join(f"run={run}" for run in ids)
    found = strict(shown.get(f"/data/compare?{query}").text)
    assert [sorted(group["runs"]) for group in found["groups"]] == [sorted(ids)]
    assert set(found["series"]) == set(ids)
    sheet = shown.get(f"/data/compare.csv?{query}")
    assert sheet.headers["content-disposition"].startswith("attachment")
    assert len(sheet.text.splitlines()) > 1


def test_too_many_runs_are_not_compared(shown: Dashboard) -> None:
    answer = shown.get("/data/compare?" + "&".join(f"run=r{number}" for number in range(41)))
    assert answer.status_code == 400
    assert "41 runs" in answer.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/data/runs/none", 404),
        ("/data/runs/none/matrix", 404),
        ("/data/compare?run=none", 404),
        ("/runs/none/report", 404),
        ("/runs/none/adapter/1.zip", 404),
    ],
)
def test_what_is_not_there_is_said(shown: Dashboard, path: str, status: int) -> None:
    answer = shown.get(path)
    assert answer.status_code == status
    assert "none" in answer.text


@pytest.mark.parametrize("part", ["rounds/x", "rounds/99999999999999999999", "spread?metric=<b>", "events?before=-1"])
def test_questions_that_make_no_sense_are_refused(shown: Dashboard, store: RunStore, part: str) -> None:
    run = make_run(store)
    assert shown.get(f"/data/runs/{run.id}/{part}").status_code in (400, 404)


def test_a_collaborator_gets_its_own_site_alone(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, clients=4, rounds=12)
    text = shown.get("/mine/data", site_of(run.id, "hospital-001")).text
    found = strict(text)
    assert found["site"] == "hospital-001"
    assert len(found["own"]) == 12
    assert not any(other in text for other in ("hospital-000", "hospital-002", "hospital-003"))
    assert shown.get("/mine/data", OPERATOR).status_code == 404


def test_the_report_is_a_page_that_can_run_nothing(shown: Dashboard, store: RunStore) -> None:
    run = make_run(store, name="<script>alert(1)</script>")
    answer = shown.get(f"/runs/{run.id}/report")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == REPORT_POLICY
    assert "<script" not in answer.text


def test_an_adapter_is_exported_once(shown: Dashboard, store: RunStore) -> None:
    run, calls = make_run(store), []

    def export(folder: Path, wanted: int, output: Path) -> None:
        calls.append((folder, wanted))
        output.mkdir()

    for _ in range(2):
        assert exported(shown.context, run, 3, export).name == "adapter-round-3"
    assert calls == [(run.folder, 3)]


def test_a_downloaded_adapter_is_a_zip_of_its_folder(shown: Dashboard, store: RunStore, tmp_path: Path) -> None:
    import io
    import zipfile

    run = make_run(store)
    folder = run.folder / "adapter-round-2"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (tmp_path / "secret").write_text("no")
    (folder / "link").symlink_to(tmp_path / "secret")
    answer = shown.get(f"/runs/{run.id}/adapter/2.zip")
    assert answer.headers["content-disposition"] == f'attachment; filename="{run.id}-adapter-round-2.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["adapter_config.json"]


@pytest.mark.parametrize("wanted", ["6", "-1", "x", "1e3"])
def test_rounds_that_are_not_committed_have_no_adapter(shown: Dashboard, store: RunStore, wanted: str) -> None:
    run = make_run(store)
    assert shown.get(f"/runs/{run.id}/adapter/{wanted}.zip").status_code == 404
