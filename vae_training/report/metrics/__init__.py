"""What the report measures on frames and latents."""
