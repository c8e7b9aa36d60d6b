"""OPT: what training is set to."""
