"""The pages about strategies say what the code says."""

import dataclasses
import re
from pathlib import Path

import pytest

from fedlora.strategies.base import Strategy
from fedlora.strategies.fed_sb import FedSb
from fedlora.strategies.fedavg import FedAvg
from fedlora.strategies.ffa_lora import FfaLora
from fedlora.strategies.lora_fair import LoraFair

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "strategies.md").read_text()
GUIDE = (ROOT / "docs" / "add-a-strategy.md").read_text()
EXAMPLE = ROOT / "examples" / "fedlora-fedsa"


@pytest.mark.parametrize("method", [FedAvg, FfaLora, LoraFair, FedSb])
def test_the_page_has_each_method_with_its_options_defaults_and_source(method: type[Strategy]) -> None:
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"`{method.name}`"))
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        assert f"`strategy.{field.name}`" in text
        assert f"`{field.default}`" in text
    for key, value in method.defaults.items():
        assert f"`{key}={value}`" in text
    for paper in re.findall(r"arXiv:[\d.]+", method.paper):
        assert paper in text


@pytest.mark.parametrize(("language", "file"), [("python", "src/fedlora_fedsa.py"), ("toml", "pyproject.toml")])
def test_the_guide_shows_the_example_s_real_code(language: str, file: str) -> None:
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)
    source = (EXAMPLE / file).read_text()
    shown = [block for block in blocks if f"`{file}`" in GUIDE[: GUIDE.index(block)].splitlines()[-3]]
    assert shown, f"no block of {file}"
    for block in shown:
        assert block in source
