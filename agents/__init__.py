"""Train, evaluate, watch and compare Stable-Baselines3 agents on latents.

train_agent(AgentConfig(env="VizdoomBasic-v1", encoder=Path("runs/doom/encoder"), out=Path("runs/agent")))
print(evaluate_agent("runs/agent", episodes=100))
"""

from latent_obs.util.errors import require

require("stable_baselines3", extra="agents", purpose="train and evaluate agents")

from agents.config import AgentConfig  # noqa: E402  (after the hint above)
from agents.envs import load_encoder, make_vec_env  # noqa: E402
from agents.evaluation import Evaluation, evaluate_agent, evaluate_random, success_rule  # noqa: E402
from agents.normalization import LatentNormalize  # noqa: E402
from agents.play.policy import PlayPolicy, load_policy  # noqa: E402
from agents.play.show import Show, film, write_video  # noqa: E402
from agents.play.watch import watch_agent  # noqa: E402
from agents.store import encoder_of  # noqa: E402
from agents.training import AgentResult, DriftCallback, read_evaluations, train_agent  # noqa: E402

__all__ = [
    "AgentConfig",
    "AgentResult",
    "DriftCallback",
    "Evaluation",
    "LatentNormalize",
    "PlayPolicy",
    "Show",
    "encoder_of",
    "evaluate_agent",
    "evaluate_random",
    "film",
    "load_encoder",
    "load_policy",
    "make_vec_env",
    "read_evaluations",
    "success_rule",
    "train_agent",
    "watch_agent",
    "write_video",
]
