"""Every mistake is reported, each with its place, in one call."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.config.compose import compose
from fedlora.config.keys import ELSEWHERE_CALLED, keys
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError


def problems(overrides: Sequence[str], file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, file=file)
    return caught.value.problems


def one(*overrides: str) -> str:
    found = problems(overrides)
    assert len(found) == 1, found
    return found[0]


def test_five_kinds_of_mistake_in_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  lr: fast\nfederation:\n  cohort: 50\n  clinets: 20\n", encoding="utf-8")

    found = problems(["daat/partition=iid", "adapter.r=0"], file)

    assert len(found) == 5, found
    assert found[0].startswith("override 'daat/partition=iid': unknown group 'daat/partition'")
    assert "did you mean 'data/partition'?" in found[0]
    assert found[1].startswith(f"{file}:5: unknown key 'federation.clinets'; did you mean 'federation.clients'?")
    text = "\n".join(found[2:])
    assert f"{file}:2: train.lr = 'fast': must be a valid number" in text
    assert "override 'adapter.r=0': adapter.r = 0: must be greater than or equal to 1. Allowed: integer ≥ 1" in text
    # Judged against the 20 clients that were meant.
    assert f"{file}:4 and {file}:5: federation.cohort = 50 asks more clients" in text
    assert "(federation.clients = 20)" in text


def test_a_right_file_is_no_problem_of_a_wrong_override(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("strategy: fed_sb\n", encoding="utf-8")
    assert problems(["strategy.init=nowhere"], file)[0].startswith("override 'strategy.init=nowhere': strategy.init")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modle=smollm2", "unknown group or key 'modle'; did you mean 'model'?"),
        ("model=smolm2", "group model has no option 'smolm2'; did you mean 'smollm2'? Options: hub, local, minilm"),
        ("strategy=fedsb", "group strategy has no option 'fedsb'; did you mean 'fed_sb'?"),
        ("experiment=imgae", "did you mean 'image'?"),
        ("data=null", "group data has no option 'null'"),
        ("train.ir=1", "unknown key 'train.ir'; did you mean 'train.lr'?"),
        ("lr=1", "unknown group or key 'lr'; did you mean 'train.lr'?"),
        ("federation.lr=1", "unknown key 'federation.lr'; did you mean 'train.lr'?"),
        ("foo.bar=1", "unknown key 'foo.bar'."),
        ("adapter=3", "adapter holds several keys"),
        ("model={foo: 1}", "unknown key 'model.foo'"),
        ("data.partition=iid", "choose its option with 'data/partition=iid'"),
        ("strategy.init=random", "strategy.init: fedavg has no such option. It is an option of fed_sb."),
        ("+a.b=1", "to set a key write 'a.b=…' without '+'"),
        ("++adapter.r=1", "to set a key write 'adapter.r=…' without '+'"),
        ("~model", "keys cannot be deleted"),
        ("hydra.run.dir=x", "set with 'output' and 'store'"),
        ("model@other=minilm", "without '@'"),
        ("seed=1,2", "several values are a sweep: add --multirun"),
        ("nonsense", "this is no override: write KEY=VALUE"),
        ("name=[a", "this cannot be read"),
        ("name='${nope}'", "cannot be resolved"),
        ("seed=-1", "seed = -1: must be greater than or equal to 0"),
        ("train.lr=inf", "train.lr = inf: must be a finite number"),
        ("federation.clients=0", "federation.clients = 0: must be greater than or equal to 1"),
        ("train.optimizer=adam", "train.optimizer = 'adam': must be 'adamw' or 'sgd'"),
        ("model=hub", "model.name has no value; set it"),
        ("train.batch=[1]", "train.batch = [1]: must be a valid integer"),
    ],
)
def test_one_mistake_is_one_sentence_that_names_the_override(override: str, said: str) -> None:
    found = [problem for problem in problems([override]) if said in problem]
    assert len(found) == 1, problems([override])
    assert found[0].startswith(f"override {override!r}: ")


def test_what_was_meant_stands_in_for_what_was_said() -> None:
    found = problems(["strategy=fedsb", "strategy.innit=random"])
    assert len(found) == 2
    assert "did you mean 'strategy.init'?" in found[1]


def test_a_key_said_right_is_not_replaced_by_a_near_wrong_one() -> None:
    found = problems(["lr=3", "train.lr=fast"])
    assert any("train.lr = 'fast'" in problem for problem in found)


def test_mistakes_on_one_line_are_each_reported(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {lr: fast, bathc: 3, steps: 0}\n", encoding="utf-8")
    assert len(problems([], file)) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "this is not YAML"),
        ("- 1\n", "a configuration is a mapping"),
        ("seed: 1\nseed: 2\n", "mine.yaml:2: the key 'seed' is given twice"),
        ("seed: !!python/object/apply:os.system [ls]\n", "this is not YAML"),
        ("defaults:\n  - model: hub\n", "mine.yaml:1: unknown group or key 'defaults'"),
        ("_target_: os.system\n", "unknown group or key '_target_'"),
        ("train:\n  _target_: os.system\n", "mine.yaml:2: unknown key 'train._target_'"),
    ],
)
def test_mistakes_of_a_file(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    assert any(said in problem for problem in problems([], file))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in problems([], tmp_path / "none.yaml")[0]


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# nothing\n", encoding="utf-8")
    assert compose([], file=file) == compose([])


@given(st.sampled_from([name for name in keys() if name != "strategy.name"]), st.data())
@settings(max_examples=25, deadline=None)
def test_a_dropped_letter_never_composes_silently(name: str, data: st.DataObject) -> None:
    last = name.rpartition(".")[2]
    spot = data.draw(st.integers(0, len(last) - 1))
    wrong = name[: len(name) - len(last)] + last[:spot] + last[spot + 1 :]
    if wrong and not wrong.endswith(".") and wrong not in keys():
        assert any(repr(wrong) in problem or "is a group" in problem for problem in problems([f"{wrong}=1"]))


@given(st.lists(st.text(max_size=20), max_size=3))
@settings(max_examples=40, deadline=None)
def test_no_text_makes_anything_but_a_configuration_or_a_config_error(overrides: list[str]) -> None:
    with suppress(ConfigError):
        assert isinstance(compose(overrides), RunConfig)


@pytest.mark.parametrize(("said", "meant"), ELSEWHERE_CALLED.items())
def test_other_libraries_names_are_understood(said: str, meant: str) -> None:
    assert meant in keys()
    found = problems([f"{meant.split('.')[0]}.{said}=7", f"{said}=7"])
    assert [f"did you mean '{meant}'" in text for text in found].count(True) >= 2, found
