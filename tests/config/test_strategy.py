"""Options of methods, and a method of somebody else's package."""

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from fedlora.config.compose import compose
from fedlora.config.schema import StrategyConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import ConfigError, StrategyError

THEIRS = '''
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Any, Mapping
from pydantic import Field
from fedlora.strategies.fedavg import FedAvg

@dataclass(frozen=True)
class Theirs(FedAvg):
    """Theirs."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    layers: tuple[int, ...] = (1, 2)
    need: int = field(kw_only=True)

    name = "theirs"
    summary = "a method of another package"
    paper = "none"
    exact = False
    defaults: ClassVar[Mapping[str, Any]] = {"adapter.r": 5, "train.lr": 0.25}
'''


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(THEIRS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = EntryPoints([EntryPoint("theirs", "their_package:Theirs", "fedlora.strategies")])
    monkeypatch.setattr("fedlora.strategies.registry.entry_points", lambda group: found.select(group=group))


@pytest.mark.usefixtures("theirs")
def test_a_package_gets_its_option_for_free() -> None:
    config = compose(["strategy=theirs", "strategy.need=3", "strategy.beta=0.5", "train.lr=0.5"])
    assert config.strategy.options == {"beta": 0.5, "layers": [1, 2], "need": 3}
    assert (config.adapter.r, config.train.lr) == (5, 0.5)


@pytest.mark.usefixtures("theirs")
def test_a_package_gets_its_options_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["strategy=theirs", "strategy.beta=1.5", "strategy.layers=[a]", "strategy.bata=1"])
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4, text
    assert "strategy.beta = 1.5: must be less than 1. Allowed: number > 0 and < 1" in text
    assert "strategy.layers = 'a': must be a valid integer" in text
    assert "strategy.need has no value" in text
    assert "did you mean 'strategy.beta'?" in text


def test_it_is_gone_with_its_package() -> None:
    with pytest.raises(ConfigError, match="group strategy has no option 'theirs'"):
        compose(["strategy=theirs"])


def test_make_strategy_checks_what_came_over_a_network() -> None:
    made = make_strategy(StrategyConfig.model_validate({"name": "lora_fair", "solver": "ridge"}))
    assert vars(made)["solver"] == "ridge"
    with pytest.raises(StrategyError, match="fed_sb"):
        make_strategy(StrategyConfig.model_validate({"name": "fedsb"}))
    with pytest.raises(ConfigError, match=r"did you mean 'strategy\.solver'"):
        make_strategy(StrategyConfig.model_validate({"name": "lora_fair", "sovler": "ridge"}))
    with pytest.raises(ConfigError, match=r"strategy\.solver = 'x': must be"):
        make_strategy(StrategyConfig.model_validate({"name": "lora_fair", "solver": "x"}))
