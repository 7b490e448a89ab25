"""Train, evaluate, watch and compare Stable-Baselines3 agents on latents.

train_agent(AgentConfig(env="VizdoomBasic-v1", encoder=Path("runs/doom/encoder"), out=Path("runs/agent")))
print(evaluate_agent("runs/agent", episodes=100))

The public names are listed once, in `__init__.pyi`; each is imported at first use, so that `--help` is quick.
"""

from importlib.util import find_spec

import lazy_loader

from latent_obs.util.errors import require

if find_spec("stable_baselines3") is None:
    require("stable_baselines3", extra="agents", purpose="train and evaluate agents")  # raises, and names the extra

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
