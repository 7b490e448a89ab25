"""Probes: how well recorded state can be predicted from latents."""
