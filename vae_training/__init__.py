"""What runs before an agent: recordings, the CVAE, and its training with cyclical annealing of beta."""
