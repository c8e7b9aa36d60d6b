"""LOS: the loss and what it is given."""
