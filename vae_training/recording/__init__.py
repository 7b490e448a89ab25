"""Frame files recorded from a Gymnasium environment, with actions, rewards and state beside them."""
