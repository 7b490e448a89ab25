"""The heads learn a toy world whose rules are known, and only from rows that are transitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from vae_training.model.transition_heads import ActionCode, InverseDynamics, NextLatent, Reward

QUICK = settings(max_examples=25, deadline=None)
MOVES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
DIM = 6


class World:
    """A point that an action moves by a step; its latent is a fixed mixture of its place and what stays the same.

    The reward is 1 where the point arrives right of 1, else 0. Of invalid rows everything is wrong.
    """

    def __init__(self, count: int, seed: int, kind: str = "discrete") -> None:
        generator = torch.Generator().manual_seed(seed)
        mixture = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(99)))[0]
        place, rest = torch.randn(count, 2, generator=generator), torch.randn(count, DIM - 2, generator=generator)
        self.action = torch.randint(0, 4, (count,), generator=generator)
        moved = place + 0.7 * MOVES[self.action]
        if kind == "continuous":
            self.action = 3 + 5 * torch.randn(count, 2, generator=generator)
            moved = place + 0.1 * (self.action - 3)
        self.before, self.after = torch.cat([place, rest], 1) @ mixture, torch.cat([moved, rest], 1) @ mixture
        self.reward = (moved[:, 0] > 1).float()
        self.valid = torch.rand(count, generator=generator) < 0.8
        self.after[~self.valid] = self.before[~self.valid]
        self.action[~self.valid], self.reward[~self.valid] = 0, -50.0

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.before[rows], self.after[rows], self.action[rows], self.valid[rows]


def learn(head: nn.Module, loss: Callable[[Tensor], Tensor], count: int, steps: int = 500) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(torch.randint(0, count, (256,))).backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_inverse_dynamics_predicts_the_action():
    world, new = World(2000, 0), World(500, 1)
    head = InverseDynamics(DIM, ActionCode("discrete", 4))
    before = head(*world.rows(torch.arange(2000)))
    assert 1.0 < before.item() < 2.0  # about the logarithm of 4
    learn(head, lambda rows: head(*world.rows(rows)), 2000)
    predicted = head.head(torch.cat([new.before, new.after], 1)).argmax(1)
    assert (predicted == new.action)[new.valid].float().mean() > 0.95
    assert head(*new.rows(new.valid)).item() < 0.2


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_next_latent_follows_from_latent_and_action(kind: str):
    world, new = World(2000, 0, kind), World(500, 1, kind)
    code = ActionCode("discrete", 4) if kind == "discrete" else ActionCode("continuous", 2)
    code.fit(world.action[world.valid])
    head = NextLatent(DIM, code)
    learn(head, lambda rows: head(*world.rows(rows)), 2000)
    assert head(*new.rows(new.valid)).item() < 0.02
    shuffled = new.action[torch.randperm(500)]
    assert head(new.before, new.after, shuffled, new.valid).item() > 0.05


def test_reward_follows_from_where_one_arrives():
    world, new = World(2000, 0), World(500, 1)
    head = Reward(DIM, ActionCode("discrete", 4))
    head.fit(world.reward[world.valid])

    def loss(of: World, rows: Tensor) -> Tensor:
        before, after, action, valid = of.rows(rows)
        return head(before, after, action, of.reward[rows], valid)

    first = loss(new, new.valid).item()
    learn(head, lambda rows: loss(world, rows), 2000)
    assert loss(new, new.valid).item() < 0.25 * first
    guess = (
        head.head(torch.cat([new.before, new.after, head.actions(new.action)], 1)).squeeze(1) * head.scale + head.mean
    )
    assert ((guess > 0.5) == (new.reward > 0.5))[new.valid].float().mean() > 0.95


def make_heads() -> tuple[InverseDynamics, NextLatent, Reward]:
    torch.manual_seed(3)
    code = ActionCode("discrete", 4)
    heads = InverseDynamics(DIM, code), NextLatent(DIM, code), Reward(DIM, code)
    for parameter in heads[1].head[-1].parameters():  # it begins as "nothing changes"
        nn.init.normal_(parameter)
    return heads


def losses_of(before: Tensor, after: Tensor, action: Tensor, reward: Tensor, valid: Tensor) -> list[Tensor]:
    inverse, forward, rewarded = make_heads()
    return [
        inverse(before, after, action, valid),
        forward(before, after, action, valid),
        rewarded(before, after, action, reward, valid),
    ]


@given(seed=st.integers(0, 999), count=st.integers(3, 20))
@QUICK
def test_rows_that_are_no_transitions_have_no_influence(seed: int, count: int):
    world = World(count, seed)
    world.valid[:2] = True
    before = world.before.clone().requires_grad_()
    losses = losses_of(before, world.after, world.action, world.reward, world.valid)
    torch.stack(losses).sum().backward()
    only = [t[world.valid] for t in (world.before, world.after, world.action, world.reward, world.valid)]
    np.testing.assert_allclose([loss.item() for loss in losses], [loss.item() for loss in losses_of(*only)], rtol=1e-4)
    gone = ~world.valid
    assert before.grad is not None
    assert not before.grad[gone].any()
    world.before[gone], world.after[gone], world.action[gone], world.reward[gone] = 1e6, -1e6, 2**40, 1e30
    wild = losses_of(world.before, world.after, world.action, world.reward, world.valid)
    assert [loss.item() for loss in wild] == [loss.item() for loss in losses]


@pytest.mark.parametrize("valid", [0, 1])
def test_without_transitions_all_losses_are_finite_and_have_gradients(valid: int):
    world = World(5, 0)
    world.valid[:] = False
    world.valid[:valid] = True
    before = world.before.requires_grad_()
    losses = losses_of(before, world.after, world.action, world.reward, world.valid)
    torch.stack(losses).sum().backward()
    assert all(torch.isfinite(loss) for loss in losses)
    assert before.grad is not None
    assert torch.isfinite(before.grad).all()
    assert losses[1].item() == 0.0  # one target has no variance
    assert valid or not any(loss.item() for loss in losses)


@given(seed=st.integers(0, 999))
@QUICK
def test_losses_are_what_numpy_says(seed: int):
    world = World(12, seed)
    world.valid[:2] = True
    got = [x.item() for x in losses_of(world.before, world.after, world.action, world.reward, world.valid)]
    inverse, forward, reward = make_heads()
    hot = functional.one_hot(world.action, 4).float()
    with torch.no_grad():
        logits = inverse.head(torch.cat([world.before, world.after], 1)).double().numpy()
        step = forward.head(torch.cat([world.before, hot], 1)).double().numpy()
        value = reward.head(torch.cat([world.before, world.after, hot], 1))[:, 0].double().numpy()
    v, before, after = world.valid.numpy(), world.before.double().numpy(), world.after.double().numpy()
    chosen = logits[np.arange(12), world.action.numpy()]
    np.testing.assert_allclose(got[0], (np.log(np.exp(logits).sum(1)) - chosen)[v].mean(), rtol=1e-4)
    np.testing.assert_allclose(
        got[1], ((before + step - after) ** 2)[v].mean() / max(after[v].var(0).mean(), 1e-3), rtol=1e-3
    )
    off = np.abs(value - world.reward.double().numpy())
    np.testing.assert_allclose(got[2], np.where(off < 1, off**2 / 2, off - 0.5)[v].mean(), rtol=1e-4)


@given(seed=st.integers(0, 999), size=st.integers(1, 4), count=st.integers(1, 30))
@QUICK
def test_real_actions_are_standardized_and_discrete_ones_one_hot(seed: int, size: int, count: int):
    discrete = ActionCode("discrete", 3)(torch.tensor([0, 1, 2, 7, -1], dtype=torch.int8))
    assert torch.equal(discrete, torch.eye(3)[[0, 1, 2, 2, 0]])
    actions = np.random.default_rng(seed).normal(3, 7, (count, size)).astype(np.float32)
    actions[:, 0] = 4.0  # one that never changes
    code = ActionCode("continuous", size)
    code.fit(torch.from_numpy(actions))
    spread = actions.std(0)
    spread[spread < 1e-6] = 1
    np.testing.assert_allclose(code(torch.from_numpy(actions)).numpy(), (actions - actions.mean(0)) / spread, atol=1e-3)
    np.testing.assert_allclose(
        code(torch.full((1, size), 5.0))[0, 0], 1.0, atol=1e-5
    )  # a change later on is not a huge one
