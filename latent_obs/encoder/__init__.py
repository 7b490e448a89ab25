"""The encoder: its architecture, its folder on disk, and the frozen network that computes mean latents."""
