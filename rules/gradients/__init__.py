"""GRD: gradients, and values that are no numbers."""
