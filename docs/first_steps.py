# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First steps with latent-obs
#
# An agent that learns from pixels has to learn two things at once: to see, and to act. latent-obs separates them. First
# a convolutional variational autoencoder (CVAE) learns to describe a picture by a few numbers, from recordings of the
# game. Then its encoder is frozen, and the agent learns from those numbers, the *latents*.
#
# This notebook does both in a 3D game, the scenario "Basic" of ViZDoom: find the monster, and shoot it. It takes about
# ten minutes on two processor cores. A GPU is not needed.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("latent_obs") is None:  # a hosted notebook, for example
    package = "latent-obs[agents,report,video,vizdoom] @ git+https://github.com/latent-obs/latent-obs"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% tags=["parameters"]
MINUTES = 6  # for the encoder
STEPS = 40_000  # of the agent
EPISODES = 50  # of the evaluation

# %% [markdown]
# ## An encoder for the game
#
# `fit` records frames with random actions, trains the CVAE on them, and writes a report. It chooses the amount of work
# for this machine and the minutes. The same as a command:
#
# ```sh
# latent-obs fit --env VizdoomBasic-v1 --frame-skip 4 --minutes 6 --out runs/first-steps
# ```

# %%
from pathlib import Path

from latent_obs_cli.fit import FitConfig, fit

env = "VizdoomBasic-v1"
run = Path("runs/first-steps")
fitted = fit(FitConfig(env, run, frame_skip=4, minutes=MINUTES))

# %% [markdown]
# ## What the encoder sees
#
# An encoder turns each picture into one row of numbers, its latents. The decoder turns latents back into pictures.
# Top: frames of the last recording, which the CVAE was not trained on. Bottom: what their latents decode to.

# %%
import numpy as np
from PIL import Image

from latent_obs import FrozenEncoder
from vae_training import get_datasets

encoder = FrozenEncoder.load(fitted.encoder)
held_out = np.array(get_datasets(run / "frames")[-1])  # uint8 (frames, height, width, channels)
latents = encoder(held_out)
print(f"{held_out[0].size:,} values of a picture became {latents.shape[1]} latents.")


def sheet(*rows: np.ndarray) -> Image.Image:
    """Rows of pictures with white lines between them, in twice their size."""
    framed = np.pad(np.array(rows), ((0, 0), (0, 0), (0, 2), (0, 2), (0, 0)), constant_values=255)
    sheet = Image.fromarray(np.concatenate([np.concatenate([*row], axis=1) for row in framed]))
    return sheet.resize((2 * sheet.width, 2 * sheet.height))


some = np.linspace(0, len(held_out) - 1, 8).astype(int)
sheet(held_out[some], encoder.decode(latents[some]))

# %% [markdown]
# A traversal moves through the latents in a straight line. Each row follows one of the four directions in which the
# latents of the recording differ most.

# %%
center = latents.mean(axis=0)
_, _, directions = np.linalg.svd(latents - center, full_matrices=False)
rows = []
for direction in directions[:4]:
    low, high = np.quantile((latents - center) @ direction, [0.02, 0.98])
    rows.append(encoder.decode(center + np.linspace(low, high, 8)[:, None] * direction))
sheet(*rows)

# %% [markdown]
# ## An agent on the latents
#
# The agent is PPO of Stable-Baselines3. It never sees a pixel.

# %%
from agents import AgentConfig, evaluate_agent, evaluate_random, film, train_agent

config = AgentConfig(
    env=env,
    encoder=fitted.encoder,
    out=Path("runs/first-steps-agent"),
    frame_skip=4,
    latent_only=True,
    steps=STEPS,
    eval_every=STEPS // 4,
)
trained = train_agent(config)

# %% [markdown]
# ## Is it any good?
#
# The agent and a random policy play new episodes. An episode has a return near 85 if the agent hits the monster soon.

# %%
print("trained agent: mean return", evaluate_agent(config.out, episodes=EPISODES))
print("random policy: mean return", evaluate_random(config, episodes=EPISODES))

# %%
from IPython.display import Video

video, _ = film(config.out)
Video(video, embed=True)

# %% [markdown]
# The video shows the game, the picture that the latents decode to, and the action.
#
# ## Where to go from here
#
# - `latent_obs.wrap(env, "runs/first-steps/encoder")` gives latents to an environment of your own training code.
# - The [documentation](https://github.com/latent-obs/latent-obs/tree/main/docs) has a guide to each step: your own
#   environment, your own recordings, MineRL, training, agents.
