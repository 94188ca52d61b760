"""Reading a policy: what is valid, and every kind of mistake, all at once and each with its line."""

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedlora.client.home import policy_template
from fedlora.client.policy import METRICS, Policy, policy_keys
from fedlora.client.policy_file import LARGEST, load_policy
from fedlora.client.policy_words import in_words, missing, notes
from fedlora.config.schema import DataConfig, ModelConfig, TaskConfig
from fedlora.errors import PolicyError, StoreError
from tests.client.policies import ALLOWS

NOTES = "{source: asset, columns: {text: a, label: b}%s}"


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_policy(written(folder, text))
    return caught.value.problems


def test_the_template_is_valid_and_allows_nothing(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path, policy_template()))
    assert (policy.models, policy.data, policy.servers, policy.metrics) == ({}, {}, (), ())
    assert (policy.privacy.require, policy.approval) == ("dp", "first_run")


def test_the_templates_examples_are_valid(tmp_path: Path) -> None:
    examples = [line[1:] for line in policy_template().splitlines() if re.match(r"#(\S|  )", line)]
    policy = load_policy(written(tmp_path, "\n".join(examples)))
    assert list(policy.models) == ["all-MiniLM-L6-v2"]
    assert policy.data["questions"].columns.mapped() == {"text": "question", "label": "kind"}
    assert policy.hours == ("20:00-06:00",)


def test_the_template_shows_every_key_of_the_site() -> None:
    shown = yaml.safe_load(policy_template())
    names = {f"{name}.{part}" for name, value in shown.items() if isinstance(value, dict) for part in value}
    assert {name for name in policy_keys() if "NAME" not in name} == names | {
        name for name, value in shown.items() if not isinstance(value, dict) or not value
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "data:\nmodels:\nhours:\nprivacy:\n"])
def test_what_is_not_said_has_its_default(tmp_path: Path, text: str) -> None:
    assert load_policy(written(tmp_path, text)) == Policy.model_validate({})


def test_a_whole_policy_is_read_as_it_is_written(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path, yaml.safe_dump(ALLOWS)))
    assert policy == Policy.model_validate(ALLOWS)
    assert policy.data["notes"].labels == ("benign", "malign")
    assert policy.privacy.epsilon_run == 3.0


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path, "privacy: {delta: 1e-6, epsilon_run: 2}\nservers: ['FL.Example.org:0443']"))
    assert (policy.privacy.delta, policy.privacy.epsilon_run, policy.servers) == (1e-6, 2.0, ("fl.example.org:443",))


def test_all_mistakes_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = """\
servers: [fl.example.org]
privcy: {}
privacy:
  requir: dp
  epsilon_run: -1
data:
  notes:
    source: lokal
    colums: {text: a}
hours:
  - 20:00-06:00
  - 7-9
metrics: [los]
rounds_max: many
"""
    found = problems(tmp_path, text)
    expected = [
        (1, "servers.0 = 'fl.example.org'", "host:port"),
        (2, "unknown key 'privcy'", "did you mean 'privacy'?"),
        (4, "unknown key 'privacy.requir'", "did you mean 'privacy.require'?"),
        (5, "privacy.epsilon_run = -1", "greater than 0"),
        (7, "data.notes.columns is missing", "text, text_pair, label"),
        (8, "data.notes.source = 'lokal'", "local, asset, hub"),
        (9, "unknown key 'data.notes.colums'", "did you mean 'data.notes.columns'?"),
        (12, "hours.1 = '7-9'", "'20:00-06:00'"),
        (13, "metrics.0 = 'los'", "did you mean 'loss'?"),
        (14, "rounds_max = 'many'", "integer"),
    ]
    assert len(found) == len(expected)
    for text, (line, what, remedy) in zip(found, expected, strict=True):
        assert text.startswith(f"line {line}: {what}")
        assert remedy in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n- b", "keys with values"),
        ("just words", "keys with values"),
        ("a: [1", "line 1, column 6: this is no YAML"),
        ("hours: []\n---\nhours: []", "this is no YAML"),
        ("servers: !!python/object/apply:os.system ['true']", "this is no YAML"),
        ("servers: !!python/name:os.system", "this is no YAML"),
        ("hours: []\nbatch_max: 1\nhours: []", "line 3: hours stands here a second time (first in line 1)"),
        (f"data:\n  a: {NOTES % ''}\n  a: {NOTES % ''}", "line 3: a stands here a second time"),
        ("tasks: &all []\nstrategies: *all", "line 1: references"),
        (f"data:\n  yes: {NOTES % ''}", "line 2: YAML does not read the key 'yes' as a text: put it in quotes"),
        (f"data:\n  a: {NOTES % ', labels: [yes, no]'}", "put it in quotes"),
        ("hours: " + "[" * 60 + "]" * 60, "inside each other"),
        ("hours: " + "[" * 100_000, "inside each other"),
        ("x: \x00", "this is no YAML"),
    ],
)
def test_what_a_policy_cannot_be(tmp_path: Path, text: str, told: str) -> None:
    assert told in problems(tmp_path, text)[0]


def test_a_file_that_is_no_text_too_large_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"hours: []\n# \xff\n")
    with pytest.raises(PolicyError, match="byte 12 is no UTF-8"):
        load_policy(path)
    path.write_bytes(b"#" * LARGEST)
    load_policy(path)
    path.write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(PolicyError, match="more than 1,048,576 bytes"):
        load_policy(path)
    path.unlink()
    with pytest.raises(PolicyError, match="fedlora client init"):
        load_policy(path)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path, "")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StoreError, match="write permission"):
        load_policy(path)


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_a_policy_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(PolicyError):
        assert load_policy(path) == Policy.model_validate({})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{source: local, columns: {text: a, label: b}}", "data.a: source = local needs path"),
        ("{source: asset, columns: {text: a}}", "columns must name text and label, or prompt and answer, or image"),
        ("{source: asset, columns: {text: a, label: a}}", "one column two roles"),
        (NOTES % ", tasks: [causal_lm]", "tasks has causal_lm, which needs columns for prompt and answer"),
        (NOTES % ", budget: ../x", "data.a.budget = '../x'"),
        (NOTES % ", nominal_size: 0", "data.a.nominal_size = 0"),
        (NOTES % ", units: [patient]", "lacks 'record', which is the one unit of this site (privacy.unit)"),
    ],
)
def test_a_data_set_that_could_not_be_used(tmp_path: Path, data: str, told: str) -> None:
    (found,) = problems(tmp_path, f"data:\n  a: {data}")
    assert found.startswith("line 2: ")
    assert told in found


@pytest.mark.parametrize("pair", [("x.csv", "./x.csv"), ("x.csv", "sub/../x.csv"), ("{folder}/x.csv", "x.csv")])
def test_the_same_data_cannot_have_two_budgets(tmp_path: Path, pair: tuple[str, str]) -> None:
    rule = "  %s: {source: local, path: '%s', columns: {text: a, label: b}, budget: %%s}"
    lines = [rule % (name, path.format(folder=tmp_path)) for name, path in zip("pq", pair, strict=True)]
    (found,) = problems(tmp_path, "\n".join(["data:", lines[0] % "one", lines[1] % "two"]))
    assert "the same data with the budgets 'one' and 'two'" in found
    load_policy(written(tmp_path, "\n".join(["data:", lines[0] % "one", lines[1] % "one"])))


def test_contradictions_are_found_beside_other_mistakes(tmp_path: Path) -> None:
    text = f"data:\n  a: {NOTES % ', units: [patient]'}\n  b: {{}}\nrounds_max: 0"
    found = problems(tmp_path, text)
    assert [re.sub(r"[: ].*", "", problem[len("line ") :]) for problem in found] == ["2", "3", "3", "4"]


def test_a_link_to_the_same_file_is_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    (tmp_path / "y.csv").symlink_to("x.csv")
    rule = "{source: local, path: %s.csv, columns: {text: a, label: b}, budget: %s}"
    (found,) = problems(tmp_path, f"data:\n  p: {rule % ('x', 'x')}\n  q: {rule % ('y', 'y')}")
    assert "the same data" in found


def test_local_paths_are_beside_the_file(tmp_path: Path) -> None:
    policy = Policy.model_validate(
        {
            "models": {"m": {"source": "local", "path": "models/m"}, "hub": {"source": "hub", "path": "a/b"}},
            "data": {"d": {"source": "local", "path": "/abs/d.csv", "columns": {"text": "a", "label": "b"}}},
        }
    )
    assert policy.models["m"].place(tmp_path) == tmp_path / "models/m"
    assert policy.models["hub"].place(tmp_path) is None
    assert policy.data["d"].place(tmp_path) == Path("/abs/d.csv")
    assert [text.split(" = ")[0] for text in missing(policy, tmp_path)] == ["models.m.path", "data.d.path"]
    (tmp_path / "models/m").mkdir(parents=True)
    assert [text.split(" = ")[0] for text in missing(policy, tmp_path)] == ["data.d.path"]


def test_notes_about_what_is_probably_not_meant(tmp_path: Path) -> None:
    odd = {
        "data": {"a": {**ALLOWS["data"]["notes"], "units": None, "nominal_size": 1234}},
        "strategies": ["fed_avg", "fedavg"],
        "privacy": {"require": "none"},
    }
    path = written(tmp_path, yaml.safe_dump(odd))
    path.chmod(0o620)
    found = "\n".join(notes(load_policy(path), path))
    assert found.count("\n") == 4
    for word in ("models names nothing", "nominal_size = 1234", "to 1200", "did you mean 'fedavg'?", "word for word"):
        assert word in found
    assert f"chmod 600 {path}" in found


def test_a_careful_policy_has_no_notes(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(ALLOWS))
    path.chmod(0o600)
    assert notes(load_policy(path), path) == []


def test_in_words() -> None:
    said = dict(in_words(Policy.model_validate(ALLOWS), None))
    assert said["servers"] == "fl.example.org:8443"
    assert "text from 'report', label from 'code'" in said["data notes"]
    assert "'clinic'" in said["data notes"]
    assert said["spent by one run"] == "at most ε = 3, at δ of at most 1e-05"
    assert said["size of a run"] == "at most 20 rounds, at most 10 steps a round, at most 32 records a step"
    assert dict(in_words(Policy.model_validate({}), "h:1"))["servers"] == "only the one that was joined (h:1)"


def test_the_policy_knows_the_same_tasks_columns_and_sources_as_a_run() -> None:
    task = Policy.model_json_schema()["properties"]["tasks"]["anyOf"][0]["items"]["enum"]
    assert task == TaskConfig.model_json_schema()["properties"]["name"]["enum"]
    roles = {name.rpartition(".")[2] for name in policy_keys() if ".columns." in name}
    assert roles == {"text", "text_pair", "label", "image", "prompt", "answer"} <= set(DataConfig.model_fields)
    assert set(policy_keys()["data.NAME.source"].type.split(", ")) == {"asset", "hub", "local"}
    assert {"path", "revision", "gguf", "source"} <= set(ModelConfig.model_fields)


def test_every_metric_is_in_the_description() -> None:
    for name in METRICS:
        assert name in policy_keys()["metrics"].description


def test_reading_a_policy_loads_nothing_heavy() -> None:
    code = (
        "import sys, fedlora.client.policy_file, fedlora.client.policy_check, fedlora.client.policy_words;"
        "import fedlora.client.sent, fedlora.client.controls, fedlora.client.bundle, fedlora.client.resources;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'flwr', 'grpc', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
