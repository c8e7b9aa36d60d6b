"""ACT: activation functions."""
