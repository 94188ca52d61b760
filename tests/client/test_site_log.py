"""The site's own log."""

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlora.client.home import SiteHome
from fedlora.client.policy import LogRule
from fedlora.client.site_log import log_file, open_log
from fedlora.errors import StoreError


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.Logger("fedlora.test")  # of its own: other tests' handlers hear nothing
    yield made
    for handler in made.handlers:
        handler.close()


def rule(**values: object) -> LogRule:
    return LogRule.model_validate(values)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_what_when_and_of_which_work(home: SiteHome, logger: logging.Logger) -> None:
    logger.addHandler(open_log(home, rule()))
    logger.info("answered after %.1f s\nand more", 2.25, extra={"run": "run-1", "round": 3, "other": "x"})
    (found,) = lines(log_file(home))
    assert str(found.pop("time")).endswith("+00:00")
    assert isinstance(found.pop("line"), int)
    assert found == {
        "level": "info",
        "logger": "fedlora.test",
        "template": "answered after %.1f s\nand more",
        "said": "answered after 2.2 s\nand more",
        "run": "run-1",
        "round": 3,
    }


def test_an_error_has_its_text_its_frames_and_its_cause(home: SiteHome, logger: logging.Logger) -> None:
    logger.addHandler(open_log(home, rule()))
    try:
        try:
            int("private")
        except ValueError as error:
            raise StoreError("cannot count") from error
    except StoreError:
        logger.exception("failed")
    error = lines(log_file(home))[0]["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["text"], error["cause"]["type"]) == ("StoreError", "cannot count", "ValueError")
    assert "private" in error["cause"]["text"]
    assert error["frames"][0].endswith("test_an_error_has_its_text_its_frames_and_its_cause")


def test_the_policy_says_how_much_is_written(home: SiteHome, logger: logging.Logger) -> None:
    logger.addHandler(open_log(home, rule(level="warning")))
    logger.info("no")
    logger.warning("yes")
    assert [line["said"] for line in lines(log_file(home))] == ["yes"]


def test_files_are_of_bounded_size_and_number_and_the_owners_alone(home: SiteHome, logger: logging.Logger) -> None:
    logger.addHandler(open_log(home, rule(megabytes=0.002, files=3)))
    for number in range(200):
        logger.warning("line %d", number)
    found = sorted(home.log.iterdir())
    assert [path.name for path in found] == ["client.jsonl", *(f"client.jsonl.{n}" for n in (1, 2, 3))]
    for path in found:
        assert path.stat().st_size <= 2000
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = [line["said"] for path in (*found[:0:-1], found[0]) for line in lines(path)]
    assert said == [f"line {number}" for number in range(200 - len(said), 200)]


def test_a_log_goes_on_where_it_was(home: SiteHome, logger: logging.Logger) -> None:
    for number in range(2):
        handler = open_log(home, rule())
        logger.addHandler(handler)
        logger.warning("start %d", number)
        logger.removeHandler(handler)
        handler.close()
    assert [line["said"] for line in lines(log_file(home))] == ["start 0", "start 1"]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write the log"):
        open_log(SiteHome(tmp_path / "nowhere"), rule())
