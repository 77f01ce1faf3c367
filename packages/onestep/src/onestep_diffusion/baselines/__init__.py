"""Other one-step methods, for comparison only."""
