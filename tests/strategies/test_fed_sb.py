import logging
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlora.adapters.manifest import Tensors
from fedlora.errors import StrategyError
from fedlora.strategies.base import Setup, State, global_tensors, sketch_name
from fedlora.strategies.fed_sb import FedSb, bases_from_sketches, truncated_svd
from fedlora.strategies.fedavg import FedAvg
from tests.strategies import worlds

R, ETA, SCALING = 3, 1e-2, 2.0


def gradients(rows: str) -> Tensors:
    """Other values for public than for private rows."""
    rng = np.random.default_rng(len(rows))
    return {module: rng.standard_normal(sides).astype(np.float32) for module, sides in worlds.MODULES.items()}


def sketches(width: int) -> dict[str, NDArray[np.float32]]:
    """Random Y and Z of each module, of very different sizes."""
    rng = np.random.default_rng(width)
    sides: tuple[tuple[Literal["Y", "Z"], int], ...] = (("Y", 0), ("Z", 1))
    return {
        sketch_name(module, side): (rng.standard_normal((shape[at], width)) * 10.0 ** -np.arange(width)).astype("f4")
        for module, shape in worlds.MODULES.items()
        for side, at in sides
    }


def sketching() -> Setup:
    return replace(worlds.setup(R, gradient=gradients), sketch=sketches)


def factors(state: State, module: str) -> tuple[NDArray[np.float64], ...]:
    tensors = global_tensors(state)
    return tuple(tensors[f"{module}.lora_{role}"].astype(np.float64) for role in "BRA")


def best(matrix: NDArray[np.floating], r: int) -> NDArray[np.float64]:
    """The rank-r part, by brute force."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64))
    return (u[:, :r] * s[:r]) @ vt[:r]


@pytest.mark.parametrize("init", ["weights", "random", "public", "paper", "private"])
def test_b_and_a_are_orthonormal_and_fixed(init: str) -> None:
    state = worlds.start(FedSb(init=init), sketching())  # type: ignore[arg-type]
    for module in worlds.MODULES:
        b, _, a = factors(state, module)
        np.testing.assert_allclose(b.T @ b, np.eye(R), atol=1e-6)
        np.testing.assert_allclose(a @ a.T, np.eye(R), atol=1e-6)
        assert {f"{module}.lora_A", f"{module}.lora_B"} <= set(state.fixed)
        assert f"{module}.lora_R" in state.shared


def test_weights_spans_the_rank_r_part_of_the_base_weight() -> None:
    state = worlds.start(FedSb(), worlds.setup(R))
    for module in worlds.MODULES:
        b, r, a = factors(state, module)
        weight = worlds.base_weight(module).astype(np.float64)
        np.testing.assert_allclose(b @ (b.T @ weight @ a.T) @ a, best(weight, R), atol=1e-5)
        assert not r.any()


@pytest.mark.parametrize(("init", "rows"), [("public", "public"), ("paper", "private")])
def test_lora_sb_starts_at_the_rank_r_part_of_the_first_step(init: str, rows: str) -> None:
    strategy = FedSb(init=init, init_lr=ETA)  # type: ignore[arg-type]
    state = worlds.start(strategy, worlds.setup(R, scaling=SCALING, gradient=gradients))
    for module in worlds.MODULES:
        b, r, a = factors(state, module)
        step = best(-ETA * np.sign(gradients(rows)[module]), R)
        np.testing.assert_allclose(SCALING * b @ r @ a, step, atol=1e-6 * np.linalg.norm(step))
        assert np.linalg.norm(step) > 0
        np.testing.assert_array_equal(r, np.diag(np.diag(r)))


def test_only_the_paper_s_start_is_not_private_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    made = sketching()
    with caplog.at_level(logging.WARNING):
        for init in ("weights", "random", "public", "private"):
            FedSb(init=init).start(made)  # type: ignore[arg-type]
            assert not FedSb(init=init).reads_private_data  # type: ignore[arg-type]
        assert not caplog.records
        FedSb(init="paper").start(made)
    assert FedSb(init="paper").reads_private_data
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "NOT private" in caplog.text


def test_private_starts_at_zero_on_the_columns_of_the_sketches_of_width_r() -> None:
    asked: list[int] = []

    def ask(width: int) -> Tensors:
        asked.append(width)
        return sketches(width)

    state = worlds.start(FedSb(init="private"), replace(worlds.setup(R), sketch=ask))  # reads no gradient
    assert asked == [R]
    for module in worlds.MODULES:
        b, r, a = factors(state, module)
        y, z = (sketches(R)[sketch_name(module, side)].astype(np.float64) for side in ("Y", "Z"))  # type: ignore[arg-type]
        np.testing.assert_allclose(b @ (b.T @ y), y, atol=1e-6 * np.linalg.norm(y))
        np.testing.assert_allclose((z.T @ a.T) @ a, z.T, atol=1e-6 * np.linalg.norm(z))
        assert not r.any()
        # Negative control: the other side's basis, and another start's, do not span the sketch.
        other = factors(worlds.start(FedSb(init="random"), worlds.setup(R)), module)[0]
        assert np.linalg.norm(other @ (other.T @ y) - y) > 0.1 * np.linalg.norm(y)


def test_sketches_without_full_rank_still_give_orthonormal_bases() -> None:
    """Only noise makes it certain that a rank is full."""
    y, z = np.ones((12, 1)) @ np.ones((1, R)), np.zeros((9, R))
    b, a = bases_from_sketches(y, z)
    np.testing.assert_allclose(b.T @ b, np.eye(R), atol=1e-12)
    np.testing.assert_allclose(a @ a.T, np.eye(R), atol=1e-12)
    np.testing.assert_allclose(b[:, 0], np.ones(12) / np.sqrt(12), atol=1e-12)


def test_only_private_asks_clients_for_sketches() -> None:
    assert FedSb(init="private").private_start
    assert not FedSb(init="paper").private_start
    assert not FedAvg().private_start
    for init in ("weights", "random"):
        FedSb(init=init).start(worlds.setup(R))  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match=r"init=private needs clients that train under DP \(privacy=dp\)"):
        FedSb(init="private").start(worlds.setup(R))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "layer.1.out.sketch_Z"}, r"no sketch 'layer\.1\.out\.sketch_Z'"),
        (lambda s: {**s, "layer.1.out.sketch_Y": s["layer.1.out.sketch_Z"]}, r"has shape \(15, 3\), not \(7, 3\)"),
        (lambda s: {**s, "layer.1.out.sketch_Z": s["layer.1.out.sketch_Z"] * np.inf}, "NaN or infinite"),
    ],
)
def test_unusable_sketches_are_refused(broken, said: str) -> None:  # type: ignore[no-untyped-def]
    made = replace(worlds.setup(R), sketch=lambda width: broken(sketches(width)))
    with pytest.raises(StrategyError, match=said):
        FedSb(init="private").start(made)


def test_the_data_free_starts_read_no_data() -> None:
    for init in ("weights", "random"):
        FedSb(init=init).start(worlds.setup(R))  # type: ignore[arg-type]  # its gradient raises
    with pytest.raises(AssertionError, match="gradient on public rows"):
        FedSb(init="public").start(worlds.setup(R))


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8), st.data())
@settings(max_examples=40)
def test_the_truncated_svd_is_the_best_approximation_with_fixed_signs(
    seed: int, d: int, k: int, data: st.DataObject
) -> None:
    r = data.draw(st.integers(1, min(d, k)))
    matrix = np.random.default_rng(seed).standard_normal((d, k))
    u, s, vt = truncated_svd(matrix, r)
    np.testing.assert_allclose((u * s) @ vt, best(matrix, r), atol=1e-10)
    assert np.all(s[:-1] >= s[1:])
    assert np.all(u[np.argmax(np.abs(u), axis=0), range(r)] > 0)
    # Negative control: of −matrix the left vectors are the same, and the right ones turn round.
    turned, _, turned_vt = truncated_svd(-matrix, r)
    np.testing.assert_allclose(turned, u, atol=1e-9)
    np.testing.assert_allclose(turned_vt, -vt, atol=1e-9)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda g: {k: v for k, v in g.items() if k != "layer.1.out"}, "no gradient on public rows was given"),
        (lambda g: {**g, "layer.1.out": g["layer.1.out"].T}, r"has shape \(15, 7\), not \(7, 15\)"),
        (lambda g: {**g, "layer.1.out": g["layer.1.out"] * np.nan}, "NaN or infinite"),
    ],
)
def test_an_unusable_gradient_is_refused(broken, said: str) -> None:  # type: ignore[no-untyped-def]
    made = worlds.setup(R, gradient=lambda rows: broken(gradients(rows)))
    with pytest.raises(StrategyError, match=said):
        FedSb(init="public").start(made)


@pytest.mark.parametrize("options", [{"init": "svd"}, {"init_lr": 0.0}, {"init_lr": float("nan")}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(StrategyError, match=rf"strategy\.{name}="):
        FedSb(**options)  # type: ignore[arg-type]
