"""Virtual time in a configuration: what contradicts it, and what can be wrong in a trace."""

from pathlib import Path

import pytest

from fedlora.config.compose import compose
from fedlora.config.traces import Traced, read_trace
from fedlora.errors import ConfigError
from fedlora.server.submitted import for_sites

HOW = "write seconds as 0-3600;7200-9000 (JSONL: [[0, 3600], [7200, 9000]])"
ON = "virtual.sample_seconds=0.1"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return caught.value.problems


def test_it_is_off_by_default_and_on_with_the_speed_of_a_client() -> None:
    assert not compose([]).virtual.on
    assert compose([ON]).virtual.on


@pytest.mark.parametrize(
    "overrides",
    [
        ["virtual.speed_spread=0.8", "virtual.up=5", "virtual.bandwidth_spread=0.5", "virtual.latency=0.1"],
        ["virtual.availability=0.4", "virtual.stay=30", "virtual.dropout=0.1", "federation.over_selection=1.5"],
        ["federation.buffered=true"],
        ["privacy=dp", "privacy.epsilon=3", "federation.timeout=60"],
    ],
)
def test_what_is_right_passes(overrides: list[str]) -> None:
    compose([ON, *overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["virtual.up=5", "virtual.dropout=0.1"], "virtual.up = 5.0, virtual.dropout = 0.1: this has no meaning"),
        ([ON, "privacy=central", "privacy.epsilon=3"], "virtual.sample_seconds = 0.1 with privacy=central"),
        ([ON, "virtual.stay=30"], "virtual.stay = 30 has no meaning by itself: set 'virtual.availability=0.5' too"),
        ([ON, "virtual.period=30"], "virtual.period = 30 has no meaning by itself: set 'virtual.trace=FILE' too"),
        ([ON, "virtual.bandwidth_spread=1"], "virtual.bandwidth_spread = 1 has no meaning by itself"),
        ([ON, "virtual.trace=nowhere.csv"], "virtual.trace = nowhere.csv: the file cannot be read"),
        ([ON, "virtual.availability=0"], "virtual.availability"),
    ],
)
def test_each_contradiction_is_found_once(overrides: list[str], said: str) -> None:
    found = problems(*overrides)
    assert [said in problem for problem in found] == [True]


def test_sites_have_a_time_of_their_own() -> None:
    with pytest.raises(ConfigError, match="sites take the time that they take"):
        for_sites(compose([ON]), ["ward-a", "ward-b", "ward-c"])


def test_a_trace_replaces_the_distributions(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("speed\n" + "1\n" * 10)
    compose([ON, f"virtual.trace={path}", "virtual.dropout=0.1"])
    (problem,) = problems(ON, f"virtual.trace={path}", "virtual.speed_spread=1", "virtual.up=2")
    assert "says what virtual.speed_spread, virtual.up would have drawn" in problem


def test_all_that_is_wrong_in_a_trace_is_told_with_its_line_and_beside_all_else(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = ["fast,,", "-1,,", "1,0,", "1,,9-3", "1,,0-5;4-9", "1,,always", "1,1,0-3", "1,,", "1,,0-700"]
    path.write_text("speed,up,available\n" + "\n".join(lines) + "\n")
    found = problems(ON, f"virtual.trace={path}", "virtual.period=600", "federation.min_reports=9")
    assert "federation.min_reports = 9" in found[0]
    prefix = f"override 'virtual.trace={path}': virtual.trace: {path}, "
    assert [problem.removeprefix(prefix) for problem in found[1:]] == [
        "line 2: speed = 'fast' is not a number above 0: correct it, or leave it empty",
        "line 3: speed = '-1' is not a number above 0: correct it, or leave it empty",
        "line 4: up = '0' is not a number above 0: correct it, or leave it empty",
        f"line 5: available: the interval 9-3 ends before it has begun; {HOW}",
        f"line 6: available: an interval begins at 4, before the one before it ends at 5; {HOW}",
        f"line 7: available: it is no list of intervals; {HOW}",
        "line 10: available goes on to 700 s, and all begins anew after virtual.period = 600 s: raise that",
        "it has lines for 9 clients, and federation.clients = 10: add 1, or set federation.clients=9",
    ]


def test_a_column_that_no_trace_has_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("sped\n" + "1\n" * 20)
    with pytest.raises(ConfigError) as caught:
        read_trace(path, 20)
    assert len(caught.value.problems) == 11
    assert "line 2: 'sped' is no column of a trace; there are speed, up, down, available" in caught.value.problems[0]
    assert caught.value.problems[-1].endswith("10 more lines are wrong")


def test_jsonl_and_csv_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("speed,down,available\n2,3.5,0-10;20-30\n,,\n")
    (tmp_path / "a.jsonl").write_text('{"speed": 2, "down": 3.5, "available": [[0, 10], [20, 30]]}\n\n{"up": null}\n')
    expected = [Traced(speed=2.0, down=3.5, available=((0.0, 10.0), (20.0, 30.0))), Traced()]
    assert read_trace(tmp_path / "a.csv", 2) == read_trace(tmp_path / "a.jsonl", 2) == expected


@pytest.mark.parametrize(("line", "said"), [("{", "line 1: it is no JSON"), ("[1]", "line 1: it is no JSON object")])
def test_what_is_no_json_is_told(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=said):
        read_trace(path, 1)
