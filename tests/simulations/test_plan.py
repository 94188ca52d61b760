"""The dry run says beforehand what a run then trains and sends."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.adapters.prepacked import prepacked_bytes
from fedlora.cli.__main__ import run as command
from fedlora.client.worker import worker_for
from fedlora.config.compose import compose
from fedlora.config.groups import shipped
from fedlora.config.headers import read_header
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.errors import DataError, ModelError, StrategyError
from fedlora.simulations.plan import Plan, make_plan
from fedlora.simulations.simulate import Watch, run
from fedlora.strategies.registry import strategies
from tests.tiny import tiny_config

WIDTH, RANK, MODULES = 32, 2, 4
"""The tiny models: two layers; two adapted modules in each."""


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def config(strategy: str, **updates: object) -> RunConfig:
        return tiny_config(tiny_bert, tiny_text_csv, strategy={"name": strategy}, store=tmp_path, **updates)

    return config


@pytest.fixture
def questions(tiny_llama: Path, tiny_qa_jsonl: Path, tmp_path: Path) -> RunConfig:
    return tiny_config(tiny_llama, tiny_qa_jsonl, store=tmp_path)


@pytest.fixture
def pictures(tiny_vit: Path, tiny_images: Path, tmp_path: Path) -> RunConfig:
    return tiny_config(tiny_vit, tiny_images, store=tmp_path)


def assert_sends_what_it_says(plan: Plan, config: RunConfig) -> None:
    """Runs `config` and compares each counted byte with the plan's."""
    history, traffic = run(config, Watch()), plan.traffic
    met: set[int] = set()
    for record in history.rounds[1:]:
        cohort = {row.client for row in record.roster}
        assert record.bytes_up == len(cohort) * traffic.up
        assert record.bytes_up_head == len(cohort) * traffic.up_head
        assert record.bytes_down == len(cohort) * traffic.down
        assert record.bytes_down_head == len(cohort) * traffic.down_head
        assert record.bytes_once == len(cohort - met) * traffic.once
        met |= cohort
    counted = sum(record.bytes_up + record.bytes_down + record.bytes_once for record in history.rounds)
    if config.federation.cohort == config.federation.clients:
        assert plan.total_bytes == counted


@pytest.mark.parametrize("strategy", strategies())
@pytest.mark.parametrize("train_head", [True, False])
def test_the_plans_bytes_are_those_a_run_then_counts(
    make: Callable[..., RunConfig], strategy: str, train_head: bool
) -> None:
    config = make(strategy, **{"model.train_head": train_head, "federation.cohort": 4})
    assert_sends_what_it_says(make_plan(config), config)


def test_what_is_sent_once_is_counted_for_each_client_that_comes_in(make: Callable[..., RunConfig]) -> None:
    config = make("fed_sb", **{"federation.cohort": 2, "federation.rounds": 3})
    plan = make_plan(config)
    assert plan.traffic.once > 0
    assert_sends_what_it_says(plan, config)


@pytest.mark.parametrize("source", ["questions", "pictures"])
def test_other_tasks_are_planned_as_they_run(source: str, request: pytest.FixtureRequest) -> None:
    config: RunConfig = request.getfixturevalue(source)
    assert_sends_what_it_says(make_plan(config), config)


@pytest.mark.parametrize(
    ("strategy", "numbers"),
    [
        ("fedavg", 2 * WIDTH * RANK),
        ("lora_fair", 2 * WIDTH * RANK),
        ("ffa_lora", WIDTH * RANK),
        ("fed_sb", RANK**2),
    ],
)
def test_trained_parameters_are_the_methods_own(make: Callable[..., RunConfig], strategy: str, numbers: int) -> None:
    plan = make_plan(make(strategy))
    assert plan.trained_parameters == MODULES * numbers
    assert plan.trained_head_parameters == 3 * WIDTH + 3
    frozen = make_plan(make(strategy, **{"model.train_head": False}))
    assert frozen.trained_head_parameters == frozen.traffic.up_head == 0
    assert frozen.base_parameters == plan.base_parameters


def test_steps_rows_and_participations(make: Callable[..., RunConfig]) -> None:
    config = make("fedavg", **{"federation.rounds": 6, "federation.cohort": 3, "train.steps": 5})
    plan = make_plan(config)
    assert plan.steps == 6 * 3 * 5
    assert plan.participations == 6 * 3 / 4
    assert sum(plan.holders.rows) == plan.rows["train"]
    assert sum(plan.rows.values()) == 300


def test_memory_grows_with_what_it_is_made_of(make: Callable[..., RunConfig]) -> None:
    small = make_plan(make("fedavg")).memory
    assert small.total == small.base + small.adapter + small.activations
    assert make_plan(make("fedavg", **{"train.batch": 16})).memory.activations == 2 * small.activations
    assert make_plan(make("fedavg", **{"adapter.r": 8})).memory.adapter > small.adapter
    plain = make_plan(make("fedavg", **{"train.optimizer": "sgd"})).memory
    assert plain.adapter == small.adapter // 2  # values and gradients, without AdamW's two moments


@pytest.mark.parametrize(("batch", "more"), [(4, 3.0), (100, 1.0)])
def test_memory_counts_the_clients_that_may_go_together(
    make: Callable[..., RunConfig], batch: int, more: float
) -> None:
    """All three of the cohort; but clients with 6,400 tokens a step go alone."""
    updates = {"federation.cohort": 3, "task.max_length": 64, "train.batch": batch}
    alone = make_plan(make("fedavg", engine=EngineConfig(name="sequential", group=1), **updates)).memory
    left_open = make_plan(make("fedavg", engine=EngineConfig(name="sequential", group=None), **updates)).memory
    assert left_open.activations == more * alone.activations
    assert left_open.adapter > alone.adapter


def test_memory_counts_the_copies_that_are_laid_out_for_the_processor(make: Callable[..., RunConfig]) -> None:
    with_copies, without = (make_plan(make("fedavg", **{"train.prepack": each})).memory.base for each in (True, False))
    task = worker_for(make("fedavg", **{"train.prepack": True})).task
    model = task.load_base()
    assert with_copies - without == prepacked_bytes(model, map(model.get_parameter, task.head_parameters(model)))
    assert with_copies > without


@pytest.mark.parametrize(
    ("strategy", "updates", "error", "text"),
    [
        ("fed_sb", {"adapter.r": 33}, StrategyError, "32"),
        ("fedavg", {"federation.clients": 1000}, DataError, "1000"),
        ("fedavg", {"adapter.targets": ["nothing"]}, ModelError, "nothing"),
        ("fedavg", {"model.path": Path("nowhere")}, ModelError, "nowhere"),
    ],
)
def test_what_a_run_would_refuse_the_plan_refuses(
    make: Callable[..., RunConfig], strategy: str, updates: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make_plan(make(strategy, **updates))


def test_json_is_for_scripts(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["model=local", f"model.path={tiny_bert}", "data=local", f"data.path={tiny_text_csv}"]
    columns = ["data.text=text", "data.label=label", "adapter.r=2", "federation.clients=4", "federation.cohort=2"]
    assert command(["plan", *overrides, *columns, f"store={tmp_path}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    plan = make_plan(compose([*overrides, *columns, f"store={tmp_path}"]))
    assert told["trained_parameters"] == plan.trained_parameters
    assert told["traffic"]["up"] == plan.traffic.up
    assert told["holders"]["clients"] == 4
    assert {promise["name"] for promise in told["guarantees"]} == {promise.name for promise in plan.guarantees}
    assert list(tmp_path.iterdir()) == []  # a plan leaves no run behind


def from_assets(path: str) -> bool:
    """Whether the command in the header of a shipped YAML needs nothing but the packaged models and data."""
    config = compose(read_header(shipped()[path]).overrides)
    return (
        config.model.path is None
        and "hub" not in (config.model.source, config.data.source)
        and config.data.path is None
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in shipped() if from_assets(path)])
def test_a_shipped_option_is_planned_by_the_command_in_its_header(path: str) -> None:
    plan = make_plan(compose(read_header(shipped()[path]).overrides))
    assert 0 < plan.trained_parameters < plan.base_parameters
    assert plan.total_bytes > 0


def test_the_options_left_to_local_files_and_hubs_are_known() -> None:
    left = {path for path in shipped() if not from_assets(path)}
    assert left == {"data/hub", "data/local", "model/hub", "model/local"}


@pytest.mark.slow
@pytest.mark.parametrize("name", strategies())
def test_a_strategy_with_its_own_defaults_is_planned_on_the_default_experiment(name: str) -> None:
    plan = make_plan(compose([f"strategy={name}"]))
    assert 0 < plan.trained_parameters < plan.base_parameters
