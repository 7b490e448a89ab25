"""The command `latent-obs`, and the quickstart that runs the whole path."""
