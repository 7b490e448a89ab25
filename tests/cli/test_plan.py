"""The plan of quickstart and fit: what fits into the minutes that there are."""

import itertools
from dataclasses import asdict, astuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

from latent_obs_cli.fit import _KNOTS  # pyright: ignore[reportPrivateUsage]
from latent_obs_cli.plan import AGENT, EVAL_EPISODES, RECORD, TRAIN, Sizes, Speeds, between, choose, stage_seconds
from latent_obs_cli.quickstart import (
    QuickstartConfig,
    _plan_agent_again,  # pyright: ignore[reportPrivateUsage]
)
from latent_obs_cli.stages import Walk

KNOTS = {"quickstart": QuickstartConfig().knots, "fit": _KNOTS}
SPEEDS = st.builds(
    Speeds,
    start=st.floats(0.01, 20),
    frame=st.floats(1e-4, 0.1),
    episode=st.floats(1, 2_000),
    gradient_step=st.floats(1e-3, 1),
)


def cost(speeds: Speeds, sizes: Sizes) -> float:
    return sum(stage_seconds(speeds, sizes).values())


@pytest.mark.parametrize("knots", KNOTS.values(), ids=KNOTS)
@settings(deadline=None, max_examples=30)
@given(speeds=SPEEDS, times=st.lists(st.floats(1, 20_000), min_size=2, max_size=5))
def test_more_time_gives_no_less_and_the_plan_fits(knots: tuple[Sizes, ...], speeds: Speeds, times: list[float]):
    plans = [choose(seconds, knots, lambda sizes: cost(speeds, sizes)) for seconds in sorted(times)]
    for seconds, plan in zip(sorted(times), plans, strict=True):
        assert (plan is None) == (cost(speeds, knots[0]) > seconds), "the least is exact"
        if plan is not None:
            assert cost(speeds, plan) <= seconds
            assert (plan.epochs - 1) % 4 == 0, "whole cycles of beta"
    for less, more in itertools.pairwise(plan for plan in plans if plan is not None):
        assert all(a <= b for a, b in zip(astuple(less), astuple(more), strict=True))


@pytest.mark.parametrize("knots", KNOTS.values(), ids=KNOTS)
def test_from_the_least_to_everything(knots: tuple[Sizes, ...]):
    assert between(knots, 0.0) == knots[0]
    assert between(knots, 1.0) == knots[-1]
    assert choose(1e9, knots, lambda sizes: 1.0) == knots[-1]
    with pytest.raises(ValueError, match="knots"):
        choose(1.0, knots[::-1], lambda sizes: 1.0)


@settings(deadline=None, max_examples=30)
@given(speeds=SPEEDS)
def test_evaluations_take_at_most_a_fifth_of_the_steps(speeds: Speeds):
    assert speeds.evaluate_every >= 5_000
    assert EVAL_EPISODES * speeds.episode * 0.5 <= 0.201 * speeds.evaluate_every


def test_what_an_agent_gets_does_not_depend_on_an_interruption_before_it_began(tmp_path: Path):
    config, speeds = QuickstartConfig(out=tmp_path, minutes=8.0), Speeds(0.5, 0.002, 100.0, 0.05)
    made = config.knots[1]
    estimates = stage_seconds(speeds, made)

    def planned(**interrupted: float) -> Walk:
        seconds = {name: 2 * estimates[name] for name in (RECORD, TRAIN)} | interrupted
        saved = {"plan": asdict(made), "frame_side": 64, "speeds": asdict(speeds), "seconds": seconds}
        walk = Walk(tmp_path / "quickstart.json", {}, {**saved, "estimates": dict(estimates)})
        _plan_agent_again(config, walk)
        return walk

    whole, again = planned(), planned(**{AGENT: 1.0})
    assert made.steps < whole.sizes.steps < config.knots[-1].steps
    assert 0.97 * whole.sizes.steps < again.sizes.steps <= whole.sizes.steps
    assert again.estimates[AGENT] == pytest.approx(whole.estimates[AGENT], rel=0.03)
