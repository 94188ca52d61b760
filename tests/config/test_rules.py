"""Contradictions: each rule finds its own, and right settings pass."""

import pytest

from fedlora.config.compose import compose
from fedlora.errors import ConfigError

CAUSAL = ("task=causal_lm", "model=smollm2", "data=chatterbot")


def test_a_right_setting_of_each_kind_passes() -> None:
    compose(["federation.clients=5", "federation.cohort=5", "federation.min_reports=5"])
    compose([*CAUSAL, "data/partition=dirichlet", "data.label=topic"])
    compose(["train.optimizer=sgd", "train.momentum=0.9"])
    compose(["data.limit=100", "data.partition.min_rows=10", "federation.clients=10"])
    compose(["data/partition=bootstrap", "data.limit=10", "federation.clients=1000"])
    compose(["model.head=stock"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["federation.cohort=11"], "federation.cohort = 11 asks more clients in a round than there are"),
        (["federation.min_reports=6"], "federation.min_reports = 6 can never be reached"),
        (["model.source=local"], "model.source = local needs model.path"),
        (["model.path=x"], "model.path = x has no meaning with model.source = asset, only with local"),
        (["model.source=config"], "model.source = config needs model.architecture"),
        (["model.source=config", "model.architecture={a: 1}"], "model.architecture needs 'model_type'"),
        (["data.source=local"], "data.source = local needs data.path"),
        (["data.subset=sst2"], "data.subset = sst2 has no meaning with data.source = asset, only with hub"),
        (["data.text=null"], "task.name = text_classification needs data.text"),
        (["data.label=null"], "task.name = text_classification needs data.label"),
        (["task=causal_lm"], "task.name = causal_lm needs data.prompt"),
        (["task=causal_lm"], "task.name = causal_lm needs data.answer"),
        (["task=image_classification"], "task.name = image_classification needs data.image"),
        (["data.partition.name=natural"], "data.partition.name = natural needs data.partition.column"),
        (["data.partition.column=x"], "only with natural"),
        (list(CAUSAL), "data.partition.name = dirichlet deals rows by their label"),
        (["data.limit=99"], "data.limit = 99 rows are too few for 10 clients with at least 10 each"),
        (["data/partition=iid", "data.limit=9"], "data.limit = 9 rows are too few for 10 clients with at least 1"),
        ([*CAUSAL, "data/partition=iid", "model.head=stock"], "model.head = stock is a choice for text"),
        (["train.momentum=0.9"], "train.momentum = 0.9 is sgd's"),
    ],
)
def test_each_contradiction_is_found(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert sum(said in problem for problem in caught.value.problems) == 1, caught.value.problems


def test_a_wrong_value_is_not_also_a_contradiction() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["federation.clients=zero", "federation.cohort=20"])
    assert len(caught.value.problems) == 1


def test_a_missing_value_does_not_hide_a_contradiction() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["model=hub", "federation.cohort=20"])
    assert len(caught.value.problems) == 2
