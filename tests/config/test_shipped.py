"""Every YAML and every method that fedlora ships composes; each YAML's own command is the test."""

import pytest

from fedlora.config.compose import compose
from fedlora.config.groups import defaults, shipped
from fedlora.config.headers import read_header
from fedlora.config.keys import base, keys
from fedlora.config.strategy import make_strategy
from fedlora.data.catalog import datasets, models
from fedlora.strategies.registry import strategies


@pytest.mark.parametrize("path", shipped())
def test_a_shipped_option_composes_by_the_command_in_its_header(path: str) -> None:
    group, option = path.rsplit("/", 1)
    command = read_header(shipped()[path]).overrides
    assert f"{group}={option}" in command
    compose(command)


@pytest.mark.parametrize("name", strategies())
def test_a_registered_method_composes_and_can_be_made(name: str) -> None:
    config = compose([f"strategy={name}"])
    assert type(make_strategy(config.strategy)) is strategies()[name]


def test_the_default_options_exist() -> None:
    named = {f"{group}/{option}" for group, option in defaults().items() if option and group != "strategy"}
    assert named <= set(shipped())
    assert defaults()["strategy"] in strategies()


@pytest.mark.parametrize("path", shipped())
def test_assets_that_are_named_exist(path: str) -> None:
    config = compose(read_header(shipped()[path]).overrides)
    if config.model.source == "asset":
        asset = models()[config.model.name]
        assert config.model.gguf is None or config.model.gguf in asset.files
    if config.data.source == "asset":
        columns = set(datasets()[config.data.name].columns)
        data = config.data
        used = {data.text, data.text_pair, data.label, data.image, data.prompt, data.answer, data.partition.column}
        assert used - {None} <= columns


def test_a_header_is_required() -> None:
    with pytest.raises(ValueError, match="begins with a comment"):
        read_header("name: x\n")


def test_the_main_configuration_repeats_no_default_of_the_schema() -> None:
    assert base()["train"]["batch"] == 16
    assert set(keys()) >= {"adapter.r", "data.partition.alpha", "model.architecture"}
