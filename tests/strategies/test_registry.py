from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.errors import StrategyError
from fedlora.strategies import registry
from fedlora.strategies.registry import get, strategies

PLUGIN = """
from dataclasses import dataclass
from fedlora.strategies.fedavg import FedAvg

@dataclass(frozen=True)
class Mine(FedAvg):
    option: int = 1
    name = "mine"

@dataclass
class Thawed(FedAvg.__mro__[1]):
    name = "mine"
    manifest = start = None

class Undecorated(FedAvg):
    name = "mine"

@dataclass(frozen=True)
class Partial(FedAvg.__mro__[1]):
    name, summary, paper, exact = "mine", "s", "p", True

@dataclass(frozen=True)
class Silent(FedAvg):
    name = "mine"
    summary = ""

@dataclass(frozen=True)
class Inexact(FedAvg):
    name = "mine"
    exact = "no"

@dataclass(frozen=True)
class Other(FedAvg):
    name = "other"

thing = 3
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package's metadata and module where Python finds them, as an installer does."""

    def place(dist: str, *entries: str, module: str, source: str = PLUGIN) -> None:
        info = tmp_path / f"{dist.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *entries]))
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    return place


def test_the_built_in_methods_come_first_and_know_their_names() -> None:
    found = strategies()
    assert list(found)[:4] == ["fedavg", "ffa_lora", "lora_fair", "fed_sb"]
    for name, strategy in found.items():
        assert get(name) is strategy
        assert strategy.name == name
        assert strategy().summary
        assert "arXiv:" in strategy.paper


@pytest.mark.parametrize(
    ("name", "near"), [("fedsb", "fed_sb"), ("ffa-lora", "ffa_lora"), ("lora_fare", "lora_fair"), ("FedAvg", "fedavg")]
)
def test_an_unknown_name_brings_the_nearest_known_one(name: str, near: str) -> None:
    with pytest.raises(StrategyError, match=f"no strategy '{name}'. Did you mean '{near}'\\? Known: fedavg, ffa_lora"):
        get(name)


def test_a_name_that_resembles_nothing_brings_the_list_alone() -> None:
    with pytest.raises(StrategyError, match=r"no strategy 'zzz'\. Known: fedavg"):
        get("zzz")


def test_a_plug_in_is_listed_and_loaded(install: Install) -> None:
    install("plug-in", "mine = plug_listed:Mine", module="plug_listed")
    assert list(strategies())[-1] == "mine"
    assert get("mine")(option=2).option == 2  # type: ignore[call-arg, attr-defined]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("Missing", "cannot be loaded: AttributeError"),
        ("thing", "no subclass of fedlora.strategies.base.Strategy"),
        ("Partial", "does not define manifest, start"),
        ("Thawed", r"not decorated with @dataclass\(frozen=True\)"),
        ("Undecorated", r"not decorated with @dataclass\(frozen=True\)"),
        ("Silent", "does not say summary"),
        ("Inexact", "does not say exact"),
        ("Other", "calls itself 'other'"),
    ],
)
def test_an_invalid_plug_in_is_named_with_its_package(install: Install, target: str, said: str) -> None:
    install("plug-in", f"mine = plug_{target.lower()}:{target}", module=f"plug_{target.lower()}")
    with pytest.raises(StrategyError, match=rf"package plug-in 1\.2 offers strategy 'mine'.*{said}"):
        strategies()
    with pytest.raises(StrategyError, match=said):
        get("mine")


def test_a_plug_in_that_breaks_on_import_stops_only_those_who_ask_for_it(install: Install) -> None:
    install("plug-in", "mine = plug_broken:Mine", module="plug_broken", source="raise OSError('no licence file')")
    with pytest.raises(StrategyError, match=r"package plug-in 1\.2 .*OSError: no licence file"):
        get("mine")
    assert get("fedavg").name == "fedavg"


def test_nobody_takes_the_name_of_a_built_in_method(install: Install) -> None:
    install("impostor", "fedavg = plug_impostor:Mine", module="plug_impostor")
    for ask in (strategies, lambda: get("fedavg")):
        with pytest.raises(
            StrategyError, match=r"package impostor 1\.2 names its strategy 'fedavg', but fedlora itself"
        ):
            ask()


def test_two_packages_with_one_name_are_both_named(install: Install) -> None:
    install("one", "mine = plug_twice:Mine", module="plug_twice")
    install("two", "mine = plug_twice:Mine", module="plug_twice")
    with pytest.raises(
        StrategyError, match=r"package (one|two) 1\.2 .*but package (one|two) 1\.2 has one of that name"
    ):
        strategies()
