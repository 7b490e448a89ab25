"""The model of `benchmarks.cluster`, with constants of which the answers can be worked out by hand."""

import dataclasses

import pytest

from benchmarks.cluster import Constants, Plan, asynchronous, parts, synchronous

NOTHING = Constants(**dict.fromkeys((field.name for field in dataclasses.fields(Constants)), 0.0))


def test_without_a_learner_runners_add_up():
    games = dataclasses.replace(NOTHING, game=1e-3)
    assert synchronous(games, Plan(1)) == (pytest.approx(1_000), "game")
    assert synchronous(games, Plan(512)) == (pytest.approx(512_000), "game")


def test_amdahl():
    """A step of 1 ms in a runner, and of 0.1 ms in the learner: at most 10,000 a second, and half of it with 10."""
    constants = dataclasses.replace(NOTHING, game=6e-4, encode=3e-4, act=1e-4, prepare=1e-4)
    assert synchronous(constants, Plan(10)) == (pytest.approx(5_000), "learner")
    assert synchronous(constants, Plan(10**6))[0] == pytest.approx(10_000, rel=1e-4)
    assert asynchronous(constants, Plan(5)) == (pytest.approx(5_000), "runners")
    assert asynchronous(constants, Plan(10**6)) == (pytest.approx(10_000), "learner")


def test_learners_share_steps_and_pay_for_their_mean():
    constants = dataclasses.replace(NOTHING, small=8e-3, weight_bytes=1.25e6)  # 1 ms on the network, each way
    alone = parts(constants, Plan(8, epochs=1))["learner"]  # 64 gradient steps
    assert alone == pytest.approx(64 * 8e-3)
    assert parts(constants, Plan(8, epochs=1, learners=8))["learner"] == pytest.approx(8 * 10e-3)


def test_network_and_driver():
    constants = dataclasses.replace(NOTHING, step_bytes=1_250.0, call=1e-3, metrics=1e-3)
    seconds = parts(constants, Plan(100))
    assert seconds["network"] == pytest.approx(100 * 512 * 1e-6)
    assert (seconds["driver"], seconds["weights"]) == (pytest.approx(0.2), pytest.approx(0.1))
