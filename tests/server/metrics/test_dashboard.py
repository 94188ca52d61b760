"""The page about metrics, the dashboard and the alerts speak of what the server exports, and of all of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fedlora.server.metrics import PATH, TOKEN, make_metrics
from fedlora.server.metrics.collector import LinkState
from fedlora.server.metrics.families import FAMILIES
from fedlora.server.metrics.reading import MOST_RUNS
from fedlora.server.store import RunStore

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
BOARD = json.loads((ROOT / "deploy" / "grafana" / "fedlora.json").read_text(encoding="utf-8"))
NAME = re.compile(r"\b(?:fedlora|process)_[a-z0-9_]+\b")
LABELS = re.compile(r"\b((?:fedlora|process)_[a-z0-9_]+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@pytest.fixture
def exported(store: RunStore) -> set[str]:
    """Names of metrics as a scrape has them, with and without samples."""
    text = make_metrics(store, list, LinkState)().decode()
    families = list(text_string_to_metric_families(text))
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def panels() -> Iterator[dict[str, Any]]:
    yield from BOARD["panels"]


def queries() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def documented() -> dict[str, tuple[str, str, tuple[str, ...], str]]:
    table = PAGE.split("| metric | type | unit | labels | meaning |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[1:]]
    assert all(len(row) == 5 for row in rows)
    return {row[0].strip("`"): (row[1], row[2], tuple(re.findall(r"`(\w+)`", row[3])), row[4]) for row in rows}


def test_every_metric_is_documented_and_no_other(exported: set[str]) -> None:
    page = documented()
    ours = {name for name in exported if name.startswith("fedlora_")}
    assert set(page) == ours == {family.name for family in FAMILIES}
    assert list(page) == [family.name for family in FAMILIES]
    for family in FAMILIES:
        kind, unit, labels, meaning = page[family.name]
        assert (kind, labels) == (family.kind, family.labels), family.name
        assert ("seconds" in family.name) == (unit == "seconds"), family.name
        assert ("bytes" in family.name) == (unit == "bytes"), family.name
        assert meaning


def test_what_the_page_says_in_numbers_and_names() -> None:
    assert f"GET {PATH}" in PAGE
    assert f"`{TOKEN}`" in PAGE
    assert f"{MOST_RUNS} have metrics of their own" in PAGE


def test_the_dashboard_and_the_alerts_ask_for_what_is_there(exported: set[str]) -> None:
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert asked <= exported, f"not exported: {sorted(asked - exported)}"
    assert {family.name for family in FAMILIES} <= asked, "a metric that no panel shows"


def test_they_select_by_labels_that_the_metrics_have() -> None:
    labels = {family.name: {*family.labels, "instance", "job"} for family in FAMILIES}
    seen = 0
    for query in queries():
        for name, selector in LABELS.findall(query):
            if name in labels:
                wanted = set(LABEL.findall(re.sub(r'"[^"]*"', '""', selector)))
                assert wanted <= labels[name], f"{name} has no {wanted - labels[name]}"
                seen += 1
    assert seen > 20


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert BOARD["schemaVersion"] >= 39  # Grafana 11
    assert (BOARD["uid"], BOARD["title"]) == ("fedlora", "fedlora")
    assert "id" not in BOARD
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, panel["title"]
        assert panel["datasource"]["uid"] == "${source}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
    variables = {variable["name"] for variable in BOARD["templating"]["list"]} | {"__rate_interval", "__all"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD)))
    assert used <= variables


def test_panels_do_not_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_what_was_asked_for_is_on_it() -> None:
    titles = {panel["title"]: panel for panel in panels()}
    assert titles["Runs"]
    stalled = titles["Seconds since the last commit"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["color"] for step in stalled] == ["green", "orange", "red"]
    assert titles["Outcomes"]["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    for title in ("$metric by time", "$metric by round", "Bytes", "ε", "Clients connected", "Certificates expire in"):
        assert titles[title]


def test_prometheus_and_grafana_are_told_where_things_are() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert (job["scheme"], job["metrics_path"], job["job_name"]) == ("https", PATH, "fedlora")
    assert job["authorization"]["credentials_file"] in PAGE
    assert job["tls_config"]["ca_file"] in PAGE
    assert all((ROOT / "deploy" / name).is_file() for name in prometheus["rule_files"])
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "fedlora.yml").read_text())["providers"]
    assert (source["type"], source["uid"]) == ("prometheus", BOARD["templating"]["list"][0]["current"]["value"])
    assert provider["options"]["path"] in PAGE
