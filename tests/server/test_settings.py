"""`server.yaml`: documented as it is, and every mistake in it said at once."""

from pathlib import Path

import pytest

from fedlora.errors import ConfigError
from fedlora.server.settings import DATABASE_VARIABLE, ServerSettings, database_of, read_settings

PAGE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text(encoding="utf-8")


def settings_of(folder: Path, text: str) -> ServerSettings:
    (folder / "server.yaml").write_text(text, encoding="utf-8")
    return read_settings(folder)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settings_of(folder, text)
    path = str(folder / "server.yaml")
    assert all(problem.startswith(path) for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}").lstrip(": ") for problem in caught.value.problems]


def documented() -> dict[str, str]:
    """The page's table of settings: key → default, as it is written there."""
    table = PAGE.split("### Settings", 1)[1].split("| key | default | meaning |", 1)[1].split("\n\n", 1)[0]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()[2:]]
    assert all(len(row) == 3 and row[2] for row in cells), "a row without a meaning"
    return {row[0].strip("`"): row[1] for row in cells}


def test_every_setting_is_documented_with_its_default() -> None:
    code = {
        name: "null" if field.default is None else f"`{field.default}`" if field.default else ""
        for name, field in ServerSettings.model_fields.items()
    }
    assert documented() == code
    assert list(documented()) == list(code)
    assert all(field.description for field in ServerSettings.model_fields.values())


def test_without_a_file_all_are_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == ServerSettings()
    for text in ("", "# nothing yet\n", "---\n"):
        assert settings_of(tmp_path, text) == ServerSettings()


def test_what_is_said_wins(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("link: 0.0.0.0:443\noperator: 127.0.0.1:1\n")
    found = read_settings(tmp_path, {"link": "0.0.0.0:9"})
    assert (found.link, found.operator, found.enrolment) == ("0.0.0.0:9", "127.0.0.1:1", "0.0.0.0:7444")


def test_all_settings_can_be_given(tmp_path: Path) -> None:
    text = (
        "link: '[::]:7443'\nenrolment: null\nlink_address: fed.example.org:443\noperator: 127.0.0.1:1\n"
        "hosts: [a.example.org, 10.0.0.1]\ndatabase: postgresql://me@host/db\n"
        "keep_rosters_days: 90\nkeep_events_days: 30\nkeep_audit_days: 7\n"
        "track: [tensorboard]\ntrack_project: wards\ntrack_mlflow: https://mlflow.example.org\ntrack_wandb: online\n"
    )
    found = settings_of(tmp_path, text)
    assert set(found.model_dump()) == found.model_fields_set
    assert (found.enrolment, found.hosts) == (None, ("a.example.org", "10.0.0.1"))
    assert (found.keep_rosters_days, found.keep_events_days) == (90, 30)
    assert found.tracking.model_dump() == {
        "to": ("tensorboard",),
        "project": "wards",
        "mlflow": "https://mlflow.example.org",
        "wandb": "online",
    }


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    text = "lnik: 0.0.0.0:443\nlink: nowhere\nkeep_roster_days: 3\nkeep_events_days: -1\nhosts: 5\n12: x\n"
    told = problems(tmp_path, text)
    assert len(told) == 6
    for start in (
        "lnik: there is no such setting; did you mean 'link'?",
        "keep_roster_days: there is no such setting; did you mean 'keep_rosters_days'?",
        "12: there is no such setting",
        "link: ",
        "keep_events_days: ",
        "hosts: ",
    ):
        assert sum(problem.startswith(start) for problem in told) == 1


@pytest.mark.parametrize("text", ["- link\n- operator\n", "link\n", "5\n"])
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == ["holds no settings: write one `key: value` in each line"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems(tmp_path, "link: [\ndatabase: postgresql://me:geheim@host/db\n")[0].startswith(
        "cannot be read: line "
    )
    (tmp_path / "server.yaml").write_bytes(b"link: \xff\n")
    with pytest.raises(ConfigError, match="cannot be read: UnicodeDecodeError"):
        read_settings(tmp_path)
    (tmp_path / "server.yaml").unlink()
    (tmp_path / "server.yaml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_settings(tmp_path)


def test_a_file_does_not_run_code(tmp_path: Path) -> None:
    text = f"link: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{tmp_path}/x]]\n"
    assert "could not determine a constructor" in problems(tmp_path, text)[0]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "text",
    [
        "database: postgresql://me:geheim@host/db\nlnik: x\n",
        "database: [geheim]\n",
        "database: 'geheim\n",
        "database: geheim: geheim\n",
        "? geheim\n: {\n",
    ],
)
def test_a_mistake_does_not_tell_the_password(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, text)
    assert "geheim" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert "geheim" not in repr(settings_of(tmp_path, "database: postgresql://me:geheim@host/db\n"))


def test_trackers_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "track: [nowhere]\ntrack_mlflow: https://me:geheim@mlflow.example.org\ntrack_wandb: shared\n"
    told = problems(tmp_path, text)
    assert [problem.split(":")[0] for problem in told] == ["track.0", "track_mlflow", "track_wandb"]
    assert "geheim" not in "".join(told)
    assert "name each once" in problems(tmp_path, "track: [tensorboard, tensorboard]\n")[0]
    monkeypatch.setattr("fedlora.config.track.find_spec", lambda name: None)
    assert "pip install 'fedlora[mlflow]'" in problems(tmp_path, "track: [mlflow]\n")[0]


@pytest.mark.parametrize("days", ["-1", "36501", "1.5", "'30'", "true", "soon"])
def test_retention_times_that_cannot_be(tmp_path: Path, days: str) -> None:
    for key in ("keep_rosters_days", "keep_events_days"):
        assert problems(tmp_path, f"{key}: {days}\n")[0].startswith(f"{key}: ")


def test_events_cannot_outlive_the_rosters_that_they_repeat(tmp_path: Path) -> None:
    told = problems(tmp_path, "keep_rosters_days: 10\nkeep_events_days: 11\nlnik: x\n")
    assert len(told) == 2
    assert any("11 days are more than the 10 of keep_rosters_days" in problem for problem in told)
    for text in ("keep_rosters_days: 10\nkeep_events_days: 10\n", "keep_events_days: 11\n", "keep_rosters_days: 0\n"):
        settings_of(tmp_path, text)


def test_the_environment_names_the_database_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    assert database_of(tmp_path) is None
    (tmp_path / "server.yaml").write_text("database: postgresql://host/settings\n")
    assert database_of(tmp_path) == "postgresql://host/settings"
    monkeypatch.setenv(DATABASE_VARIABLE, "postgresql://host/environment")
    assert database_of(tmp_path) == "postgresql://host/environment"
    monkeypatch.setenv(DATABASE_VARIABLE, "")
    assert database_of(tmp_path) == "postgresql://host/settings"
