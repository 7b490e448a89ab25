"""MineRL 0.4.4 as Gymnasium environments: installation, connection to the game, registration."""
