"""The front door: the console command `latent-obs`, and the quickstart that walks through all three rooms."""
