"""What a policy refuses: from a run that it allows exactly, one thing is changed, and exactly that is refused."""

import math
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.client.policy_check import PENDING, RULES, Asked, Refusal, base_refusal, leaving, refusals
from fedlora.config.compose import compose
from tests.client.policies import ALLOWS, DIGEST, HIDDEN, NIGHT, asked, policy

OTHER = "cd" * 32

# what the run asks instead → the policy's key, and two words that the reason must have: of the policy, of the run
TOO_MUCH: list[tuple[dict[str, Any], str, str, str]] = [
    ({"server": "fl.example.org:8444"}, "servers", "fl.example.org:8443", "fl.example.org:8444"),
    ({"kind": "evaluate"}, "kind", "train", "evaluate"),
    ({"model": "other"}, "models", "tiny", "other"),
    ({"base_digest": OTHER}, "models.tiny.sha256", "abababababab", "cdcdcdcdcdcd"),
    ({"data": "images"}, "data", "notes", "images"),
    (
        {"columns": {"text": "text", "label": "label", "text_pair": "context"}},
        "data.notes.columns",
        "text, label",
        "context",
    ),
    ({"labels": ("malign", "benign")}, "data.notes.labels", "[benign, malign]", "[malign, benign]"),
    ({"labels": ("benign",)}, "data.notes.labels", "[benign, malign]", "[benign]"),
    ({"task": "image_classification"}, "tasks", "causal_lm", "image_classification"),
    ({"task": "causal_lm"}, "data.notes.tasks", "text_classification", "causal_lm"),
    ({"strategy": "lora_fair"}, "strategies", "fedavg, fed_sb", "lora_fair"),
    ({"privacy": "none", "epsilon": None}, "privacy.require", "dp", "none"),
    ({"privacy": "central"}, "privacy.require", "dp", "central"),
    ({"noise": "seeded"}, "privacy.require", "dp", "seed"),
    ({"privacy": "something-new"}, "privacy.require", "dp", "something-new"),
    ({"epsilon": 3.0001}, "privacy.epsilon_run", "3", "3.0001"),
    ({"epsilon": math.inf}, "privacy.epsilon_run", "3", "inf"),
    ({"epsilon": math.nan}, "privacy.epsilon_run", "3", "nan"),
    ({"epsilon": -1.0}, "privacy.epsilon_run", "3", "-1"),
    ({"epsilon": None}, "privacy.epsilon_run", "3", "does not say"),
    ({"delta": 2e-5}, "privacy.delta", "1e-05", "2e-05"),
    ({"delta": math.nan}, "privacy.delta", "1e-05", "nan"),
    ({"unit": "record"}, "privacy.unit", "patient", "record"),
    ({"rounds": 21}, "rounds_max", "20", "21"),
    ({"steps": 11}, "steps_max", "10", "11"),
    ({"batch": 33}, "batch_max", "32", "33"),
]


def found(asking: Asked, *, approved: bool = True, **changes: Any) -> list[Refusal]:
    return refusals(policy(**changes), asking, NIGHT, approved=approved)


def test_what_is_allowed_exactly_is_not_refused() -> None:
    assert found(asked()) == []


@pytest.mark.parametrize(("change", "key", "ours", "theirs"), TOO_MUCH)
def test_one_thing_too_much_is_that_refusal_alone(change: dict[str, Any], key: str, ours: str, theirs: str) -> None:
    (refusal,) = found(asked(**change))
    assert refusal.key == key
    assert refusal.permanent
    assert ours in refusal.text
    assert theirs in refusal.text
    assert key == "kind" or refusal.text.startswith(key)
    assert refusal.text.endswith(".")


def test_all_that_is_too_much_is_said_at_once() -> None:
    change = {"server": "x:1", "strategy": "x", "rounds": 99, "steps": 99, "batch": 99, "delta": 0.1, "epsilon": 9.0}
    keys = [refusal.key for refusal in found(asked(**change), approved=False)]
    assert keys == [
        *("servers", "strategies", "privacy.epsilon_run", "privacy.delta"),
        *("rounds_max", "steps_max", "batch_max", PENDING),
    ]


def test_every_fact_of_a_run_can_be_refused() -> None:
    named = {name for change, *_ in TOO_MUCH for name in change}
    assert named == {field.name for field in fields(Asked)} - {"run"}


def test_every_rule_refuses_something() -> None:
    assert len(RULES) == 13
    keys = {key for _, key, *_ in TOO_MUCH}
    assert {key.split(".")[0] for key in keys} >= {"servers", "models", "data", "tasks", "strategies", "privacy"}


def test_a_policy_as_it_is_made_refuses_everything() -> None:
    keys = {refusal.key for refusal in refusals(policy().model_validate({}), asked(), NIGHT)}
    assert keys == {"servers", "models", "data", "privacy.unit", PENDING}


def test_without_a_list_only_the_server_that_was_joined_counts() -> None:
    open_to = policy(servers=[])
    assert refusals(open_to, asked(), NIGHT, joined="FL.example.org:8443", approved=True) == []
    for joined in (None, "another:1"):
        (refusal,) = refusals(open_to, asked(), NIGHT, joined=joined, approved=True)
        assert refusal.key == "servers"
    listed = refusals(policy(), asked(server="joined:1"), NIGHT, joined="joined:1", approved=True)
    assert [refusal.key for refusal in listed] == ["servers"], "a list is the whole list"


def test_without_lists_and_bounds_anything_goes() -> None:
    none = {"tasks": None, "strategies": None, "rounds_max": None, "steps_max": None, "batch_max": None, "hours": []}
    notes = {**ALLOWS["data"]["notes"], "tasks": None, "labels": None}
    tiny = {**ALLOWS["models"]["tiny"], "sha256": None}
    free = {**none, "data": {"notes": notes}, "models": {"tiny": tiny}, "approval": "automatic"}
    free |= {"privacy": {**ALLOWS["privacy"], "epsilon_run": None}}
    asks = {"strategy": "x", "rounds": 10**6, "steps": 10**6, "batch": 10**6, "epsilon": None, "base_digest": OTHER}
    assert found(asked(**asks, labels=("x",), task="causal_lm"), approved=False, **free) == []


@pytest.mark.parametrize(
    ("require", "enough"),
    [("none", {"none", "central", "dp"}), ("central", {"central", "dp"}), ("dp", {"dp"})],
)
def test_stronger_protection_than_required_is_enough(require: str, enough: set[str]) -> None:
    privacy = {**ALLOWS["privacy"], "require": require}
    for mode in ("none", "central", "dp"):
        keys = [refusal.key for refusal in found(asked(privacy=mode), privacy=privacy)]
        assert keys == ([] if mode in enough else ["privacy.require"])


def test_noise_from_a_seed_is_none() -> None:
    privacy = {**ALLOWS["privacy"], "require": "central"}
    assert [refusal.key for refusal in found(asked(noise="seeded"), privacy=privacy)] == ["privacy.require"]
    assert found(asked(noise="seeded"), privacy={**privacy, "require": "none"}) == []


def test_data_that_are_never_used_under_local_dp() -> None:
    data = {"notes": {**ALLOWS["data"]["notes"], "units": []}}
    (refusal,) = found(asked(), data=data)
    assert refusal.key == "data.notes.units"
    without = {**ALLOWS["privacy"], "require": "none"}
    assert found(asked(privacy="none", epsilon=None, delta=0.5, unit="record"), data=data, privacy=without) == []


def test_a_run_waits_for_its_approval() -> None:
    (refusal,) = found(asked(), approved=False)
    assert (refusal.key, refusal.permanent) == (PENDING, False)
    assert asked().run in refusal.text
    assert found(asked(), approved=False, approval="automatic") == []


def test_outside_its_hours_a_site_asks_for_patience() -> None:
    (refusal,) = refusals(policy(), asked(), NIGHT - timedelta(hours=6), approved=True)
    assert (refusal.key, refusal.permanent) == ("hours", False)
    assert "[20:00-06:00]" in refusal.text
    assert "17:30" in refusal.text
    assert "again at 20:00" in refusal.text


def test_a_run_that_does_not_say_what_it_need_not_say() -> None:
    assert found(asked(labels=None, base_digest="")) == []


def test_the_sites_own_copy_of_the_base_model_is_held_to_the_digest() -> None:
    assert base_refusal(policy(), "tiny", DIGEST) is None
    refusal = base_refusal(policy(), "tiny", OTHER)
    assert refusal is not None
    assert refusal.key == "models.tiny.sha256"


def test_only_figures_that_are_named_leave() -> None:
    measured = {"loss": 0.5, "first_loss": 0.7, "seconds": 3.0, "holdout_accuracy": 0.9, "holdout_rows": 17.0}
    assert leaving(policy(), measured) == {"loss": 0.5, "holdout_accuracy": 0.9}
    assert leaving(policy(metrics=[]), measured) == {}


TEXTS = [field.name for field in fields(Asked) if field.type == "str" or field.type is str]


@given(st.dictionaries(st.sampled_from(TEXTS), st.text(max_size=300)))
def test_reasons_are_short_lines_without_paths_whatever_is_asked(change: dict[str, str]) -> None:
    for refusal in found(asked(**change), approved=False):
        assert refusal.text.isprintable()
        assert len(refusal.text) < 1000
        assert HIDDEN not in refusal.text


def test_what_a_configuration_asks() -> None:
    config = compose(["privacy=dp", "privacy.epsilon=2", "data.text=question", "data.prompt=unused"])
    read = Asked.of(config, server="h:1", run="r", kind="train", epsilon=1.9, labels=("a",), base_digest=DIGEST)
    assert (read.task, read.strategy, read.privacy, read.unit) == ("text_classification", "fedavg", "dp", "record")
    assert (read.rounds, read.steps, read.batch) == (
        config.federation.rounds,
        config.train.steps,
        config.train.batch,
    )
    assert read.columns == {"text": "question", "label": config.data.label or "label"}
    assert (read.epsilon, read.delta, read.noise) == (1.9, config.privacy.delta, "system")
    assert (read.model, read.data) == (config.model.name, config.data.name)
