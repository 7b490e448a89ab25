"""Wrappers that replace pixels by mean latents: one environment, Gymnasium's vectors, Stable-Baselines3's vectors."""
