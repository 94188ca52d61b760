"""ε after so many rounds: what is known, and what is worked out beside."""

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from fedlora.config.schema import StrategyConfig
from fedlora.privacy import account
from fedlora.privacy.central import central_mechanism
from fedlora.privacy.schedule import run_epsilon
from fedlora.server.store import RunStore
from fedlora.server.views import Views, accountant, epsilon
from fedlora.server.views.accountant import in_a_process
from fedlora.server.views.epsilon import Epsilons, at_most, promise, spread_out
from tests.server.views.making import committed, configured, promised, quiet_views, row


def until(true: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_file_is_the_one_that_runs_write(store: RunStore) -> None:
    run = store.create(configured(privacy="dp"), name="n")
    assert epsilon.FILE == account.FILE
    found = account.accounted(configured(privacy="dp"), {0: 2, 1: 5}, account.ROSTER)
    account.write_account(run.folder, found)
    read = promise(run)
    assert read.headline == found.promise["headline"]
    assert read.total == found.promise["figures"]["epsilon"]
    assert read.largest == found.largest
    assert read.counts == {0: 0.0, 2: found.sites[0]["epsilon"], 5: found.sites[1]["epsilon"]}


def test_a_sketch_before_round_1_has_spent_something(store: RunStore) -> None:
    """Then ε after no round is not 0, and is not known before it is worked out."""
    config = configured(privacy="dp").model_copy(
        update={"strategy": StrategyConfig.model_validate({"name": "fed_sb", "init": "private"})}
    )
    run = store.create(config, name="n")
    account.write_account(run.folder, account.promised(config))
    assert set(promise(run).counts) == {5}
    committed(store, run, [[row(0)]])
    assert quiet_views(store).series(run.id).columns["epsilon"] == [None, None]
    assert quiet_views(store).run_row(run.id).epsilon_at_most


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"promise": 1, "spent": null}', '{"promise": {}, "spent": {}}'])
def test_a_damaged_file_promises_nothing(store: RunStore, content: str) -> None:
    run = store.create(configured(privacy="dp"), name="n")
    (run.folder / epsilon.FILE).write_text(content)
    assert promise(run).total is None


def test_where_no_guarantee_holds_there_is_no_epsilon(store: RunStore) -> None:
    run = store.create(configured(privacy="dp"), name="n")
    said = {"holds": False, "headline": "seeded noise", "figures": {"epsilon": 1.0}}
    (run.folder / epsilon.FILE).write_text(json.dumps({"promise": said, "spent": None}))
    committed(store, run, [[row(0)]])
    found = quiet_views(store).run_row(run.id)
    assert (found.privacy, found.epsilon, found.epsilon_total) == ("local", None, None)
    assert "epsilon" not in quiet_views(store).series(run.id).columns


def test_it_is_what_the_runs_own_accounting_says() -> None:
    """In a process, which loads torch."""
    local = configured(privacy="dp")
    assert dict(in_a_process(local.model_dump_json(), [3, 0])) == {3: run_epsilon(local, 3), 0: run_epsilon(local, 0)}


def test_central_dp_is_accounted_for_by_its_own_mechanism(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    central = configured(privacy="central")
    given = json.dumps({"config": json.loads(central.model_dump_json()), "rounds": [2]})
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    monkeypatch.setattr("os.nice", lambda more: more)
    accountant.main()
    number, found = capsys.readouterr().out.split()
    assert (int(number), float(found)) == (2, central_mechanism(central).spent(2))


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(ValueError, match=r"its process ended with 1: .+"):
        list(in_a_process("{}", [1]))


def test_it_is_worked_out_once_for_all_seeds_and_shown_when_it_is_there(store: RunStore) -> None:
    asked: list[Sequence[int]] = []
    go = threading.Event()

    def work(config: str, rounds: Sequence[int]) -> Iterator[tuple[int, float]]:
        asked.append(rounds)
        go.wait(20)
        yield from ((number, number / 10) for number in rounds)

    views = Views(store, work=work)
    run = store.create(configured(privacy="dp"), name="n")
    promised(run, 3.0, 5)
    committed(store, run, [[row(0)], [row(0)]])
    waiting = views.series(run.id).columns["epsilon"]
    assert waiting == [0.0, None, None]
    found = views.run_row(run.id)
    assert (found.epsilon, found.epsilon_at_most) == (3.0, True)  # a bound, and said to be one
    go.set()
    until(lambda: views.series(run.id).columns["epsilon"] == [0.0, 0.1, 0.2])
    found = views.run_row(run.id)
    assert (found.epsilon, found.epsilon_at_most) == (0.2, False)
    again = store.create(configured(privacy="dp").model_copy(update={"seed": 7}), name="again")
    promised(again, 3.0, 5)
    committed(store, again, [[row(0)]])
    assert views.series(again.id).columns["epsilon"] == [0.0, 0.1]
    assert asked == [(2, 0, 1, 3, 4, 5)]


def test_what_fails_is_not_tried_for_ever(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    def work(config: str, rounds: Sequence[int]) -> Iterator[tuple[int, float]]:
        raise ValueError("no torch")

    run = store.create(configured(privacy="dp"), name="n")
    promised(run)
    committed(store, run, [[row(0)]])
    views = Views(store, work=work)
    for _ in range(3):
        views.series(run.id)
    until(lambda: "no torch" in caplog.text)
    time.sleep(0.05)
    assert caplog.text.count("no torch") == 1


def test_commands_work_nothing_out(store: RunStore) -> None:
    run = store.create(configured(privacy="dp"), name="n")
    promised(run)
    found = Epsilons(None)
    found.want(run, promise(run), 1)
    assert found._thread is None


@pytest.mark.parametrize(("rounds", "count"), [(1, 2), (32, 33), (33, 18), (1000, 33)])
def test_a_long_run_has_some_rounds_worked_out(rounds: int, count: int) -> None:
    found = spread_out(rounds)
    assert (found[0], found[-1], len(found)) == (0, rounds, count)


def test_a_bound_is_the_next_larger_that_is_known() -> None:
    known = {2: 0.2, 5: 0.5}
    assert [at_most(known, rounds) for rounds in (1, 2, 3, 6)] == [
        (0.2, True),
        (0.2, False),
        (0.5, True),
        (None, False),
    ]


def test_looking_at_runs_loads_nothing_heavy() -> None:
    """`fedlora runs ls` must not wait for torch; nor must it for what only servers need."""
    heavy = ("torch", "opacus", "flwr", "grpc", "transformers", "numpy", "fastapi", "starlette", "cryptography")
    code = f"import fedlora.server.views, sys; print([name for name in {heavy!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_comparing_does_not_load_torch() -> None:
    code = "import fedlora.server.views.compare, sys; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
