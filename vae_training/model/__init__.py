"""The convolutional beta-VAE: network, losses, the schedule of beta, and how it is initialized."""
