"""The HTML pages: complete, self-contained, safe with any name, sparse runs included."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fedlora.data.table import PartitionTable
from fedlora.errors import StoreError
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunHistory, RunStatus
from fedlora.simulations.report import write_comparison, write_report
from fedlora.simulations.report.charts import Band, Line, Plot, line_chart, stacked_bars
from fedlora.simulations.report.page import outcome_sentence
from fedlora.simulations.report.roster import troubles
from fedlora.words import bytes_text, number, seconds_text
from tests.simulations.histories import make_history, make_partition

_VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """What a test asks of a page; fails on tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.references += [value or "" for name, value in attrs if name in {"href", "src", "xlink:href", "srcset"}]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, value in attrs))
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "sub" / "report.html"
    return Page(write_report(make_history(), path, partition_table=make_partition()))


def without_rounds(folder: Path = Path("/nonexistent")) -> RunHistory:
    """A run whose page has no curves: quick to draw."""
    return replace(make_history(rounds=0, folder=folder, status=RunStatus.FAILED), rounds=())


def assert_self_contained(page: Page) -> None:
    assert not set(page.tags) & {"script", "link", "iframe", "object", "embed", "img"}
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference.removeprefix("#") for reference in page.references} <= set(page.ids)
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []


def test_page_is_self_contained(page: Page) -> None:
    assert_self_contained(page)


def test_page_has_everything(page: Page) -> None:
    text = page.text
    accuracy = number(make_history().run.summary["test_accuracy"])
    for expected in (
        f"fedavg finished 12 rounds; its accuracy on the test split is {accuracy}.",
        "Answers that did not count",
        "out of memory",
        "18 MB",  # 12 × 1.5 MB up
        "18.6 MB",  # 12 × 1.55 MB down
        "108 kB of it the head",  # 12 × 9 kB
        "73.7 kB",  # once
        "Accuracy by round",
        "clients, lowest to highest",
        "Accuracy by bytes sent",
        "Aggregation error by round",
        "aggregation error, estimate",
        "residual norm by round",
        "10 clients hold",
        "No differential privacy:",
        "federation.cohort",
    ):
        assert expected in text, expected
    # Every chart has its numbers: five curves, and the partition.
    assert page.tags["figure"] == 7
    assert page.tags["summary"] == 6 + len(
        ["run", "model", "task", "data", "adapter", "strategy", "train", "federation"]
    )


def test_numbers_under_a_chart_are_the_runs(page: Page) -> None:
    last = make_history().rounds[-1].metrics
    for key in ("validation_accuracy", "validation_loss", "train_loss", "residual_norm"):
        assert f"<td>{number(last[key])}</td>" in page.source
    assert f"{number(last['aggregation_error'])} (estimate)" in page.source


def test_names_and_reasons_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script> & $x_1$'
    history = make_history(bad={(1, 3): (Outcome.FAILED, evil)}, strategy={"name": evil})
    history = replace(history, run=replace(history.run, name=evil, strategy=evil))
    table = {"rows": [3, 4], "counts": [[1, 2], [4, 0]], "labels": [evil, "ok"]}
    page = Page(write_report(history, tmp_path / "report.html", partition_table=table))
    assert_self_contained(page)
    assert page.text.count('<script>alert("1")</script> & $x_1$') >= 5
    compared = Page(write_comparison([history, make_history()], tmp_path / "compare.html"))
    assert_self_contained(compared)
    assert evil in compared.text


@pytest.mark.filterwarnings("error")
def test_text_that_the_plot_font_lacks_is_kept(tmp_path: Path) -> None:
    table = {"rows": [3, 4], "counts": [[1, 2], [4, 0]], "labels": ["人名", "场所"]}
    assert "人名" in Page(write_report(without_rounds(), tmp_path / "r.html", partition_table=table)).text


@pytest.mark.parametrize("status", list(RunStatus))
def test_every_status_has_a_sentence(status: RunStatus) -> None:
    text = outcome_sentence(make_history(rounds=5, status=status, bad={}))
    words = {
        RunStatus.FINISHED: "fedavg finished 5 rounds;",
        RunStatus.QUEUED: "fedavg waits for its turn; it has committed 5 of 12 rounds",
        RunStatus.RUNNING: "fedavg has committed 5 of 12 rounds",
        RunStatus.STOPPED: "fedavg was stopped after 5 of 12 rounds: fewer than 1 client",
        RunStatus.FAILED: "fedavg failed after 5 of 12 rounds: fewer than 1 client reported in round 5;",
    }
    assert text.startswith(words[status])


def test_run_without_rounds(tmp_path: Path) -> None:
    page = Page(write_report(without_rounds(), tmp_path / "report.html"))
    assert "fedavg failed after 0 of 12 rounds" in page.text
    assert page.tags["figure"] == 0
    assert "Answers that did not count" not in page.text


def test_diverged_run(tmp_path: Path) -> None:
    metrics = {"validation_loss": float("inf"), "validation_accuracy": float("nan"), "aggregation_error": 0.0}
    row = RosterRow(0, Outcome.REPORTED, metrics={"holdout_accuracy": float("nan"), "holdout_loss": 2.0})
    history = make_history()
    history = RunHistory(history.run, [history.rounds[0], RoundRecord(1, metrics, [row])])
    page = Page(write_report(history, tmp_path / "report.html"))
    assert "<td>inf</td>" in page.source
    assert "<td>nan</td>" in page.source


def test_hundreds_of_clients_and_rounds_stay_readable(tmp_path: Path) -> None:
    history = make_history(rounds=80, clients=300, bad={(70, 299): (Outcome.LOST, "gone.")})
    table = make_partition(300, 20)
    page = Page(write_report(history, tmp_path / "report.html", partition_table=table))
    assert_self_contained(page)
    assert "240 more clients are not listed." in page.text
    assert "The first 20 rounds are not shown." in page.text
    # The client with trouble comes first although its number is the highest.
    assert re.search(r'class="roster">.*?<tbody>\s*<tr><th scope="row">299</th>', page.source, re.DOTALL)


def test_partition_is_kept_for_later_reports(tmp_path: Path) -> None:
    labels = ("yes", "no")
    counts = np.array([[5, 2], [1, 9], [3, 3]])
    history = without_rounds(tmp_path)
    write_report(history, tmp_path / "a.html", partition_table=PartitionTable(7, counts.sum(axis=1), counts, labels))
    again = Page(write_report(history, tmp_path / "b.html"))
    assert "The first 3 of 7 clients hold 23 rows: from 6 to 10, median 7." in again.text
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()


def test_partition_without_labels(tmp_path: Path) -> None:
    table = PartitionTable(2, np.array([30, 12]), None, None)
    text = Page(write_report(without_rounds(), tmp_path / "r.html", partition_table=table)).text
    assert "2 clients hold 42 rows: from 12 to 30" in text


def test_same_run_gives_the_same_page(page: Page, tmp_path: Path) -> None:
    again = write_report(make_history(), tmp_path / "again.html", partition_table=make_partition())
    assert again.read_text(encoding="utf-8") == page.source


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the report"):
        write_report(without_rounds(), tmp_path / "file" / "report.html")


def test_comparison_page(tmp_path: Path) -> None:
    runs = [make_history(name, seed, bad={}) for name in ("fedavg", "fed_sb") for seed in range(3)]
    page = Page(write_comparison(runs, tmp_path / "compare.html"))
    assert_self_contained(page)
    assert page.tags["figure"] == 4
    assert "6 runs compared" in page.text
    assert "fed_sb, ± sd" in page.text


def with_virtual_time(history: RunHistory) -> RunHistory:
    rounds = [replace(r, metrics={**r.metrics, "virtual_seconds": 40.0 * r.round}) for r in history.rounds]
    return replace(history, rounds=rounds)


def test_virtual_time_is_an_axis_of_the_runs_that_have_one(tmp_path: Path) -> None:
    timed, plain = with_virtual_time(make_history("fedavg", bad={})), make_history("fed_sb", bad={})
    page = Page(write_report(timed, tmp_path / "timed.html"))
    assert "Accuracy by virtual time" in page.text
    assert "virtual seconds by round" not in page.text
    assert "8 min 0 s" in page.text
    assert "virtual" not in Page(write_report(plain, tmp_path / "plain.html")).text
    both = Page(write_comparison([timed, plain], tmp_path / "both.html"))
    assert both.tags["figure"] == 5
    assert "accuracy by virtual time" in both.text
    assert "41 s (virtual: 8 min 0 s)" in both.text
    tables = [rest.split("</table>")[0] for rest in both.source.split("<table")[1:]]
    (only,) = (table for table in tables if "virtual seconds" in table)
    assert "480" in only
    assert "fed_sb" not in only


def test_troubles_are_gathered_and_sorted() -> None:
    found = troubles(make_history())
    assert [(t.client, t.outcome, t.rounds) for t in found] == [
        (7, Outcome.REJECTED, [3, 5]),
        (2, Outcome.FAILED, [6]),
        (4, Outcome.LOST, [8]),
    ]


def test_log_axis_only_for_wide_positive_values() -> None:
    def label(values: list[float]) -> bool:
        svg = line_chart(Plot("t", "round", "error", [Line("e", range(len(values)), values)])).svg
        return "(log scale)" in svg

    assert label([1.0, 0.1, 0.01])
    assert not label([1.0, 0.1, 0.05])
    assert not label([1.0, 0.01, 0.0])
    assert not label([float("nan")])


def test_charts_take_their_colours_from_the_page() -> None:
    plot = Plot("t", "x", "y", [Line("a", [0, 1], [1, 2], 9)], [Band("b", [0, 1], [0, 1], [1, 3], 2)])
    for svg in (line_chart(plot).svg, stacked_bars("t", ["0"], ["a", "b"], [[1, 2]]).svg):
        assert "#" not in re.sub(r"(url\(|href=\")#", "", svg)
        assert "var(--s1)" in svg


def test_table_joins_series_by_x() -> None:
    lines = [Line("a", [0, 1], [0.5, 0.25]), Line("b", [1, 2], [3.0, 4.0], hollow=frozenset({1}))]
    table = line_chart(Plot("t", "round", "y", lines, [Band("c", [2], [0.0], [1.0])])).table
    assert list(table.columns) == ["round", "a", "b", "c"]
    assert table.rows == [["0", "0.5", "–", "–"], ["1", "0.25", "3", "–"], ["2", "–", "4 (estimate)", "0 to 1"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.89137, "0.8914"), (1.2345e-16, "1.234e-16"), (12345.0, "12,345"), (float("inf"), "inf")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (73_728, "73.7 kB"), (1_234_567_890, "1.23 GB")]
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.423, "0.42 s"), (46.2, "46 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_kept_partition_is_json(tmp_path: Path) -> None:
    write_report(without_rounds(tmp_path), tmp_path / "r.html", partition_table=make_partition(3, 2))
    kept = json.loads((tmp_path / "partition.json").read_text())
    assert kept["labels"] == ["ABBR", "DESC"]
    assert [sum(row) for row in kept["counts"]] == kept["rows"]
