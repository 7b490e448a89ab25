"""What runs after: training, evaluating and filming Stable-Baselines3 agents on latents."""
