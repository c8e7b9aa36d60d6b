"""What the weights do to signal and gradient, from mean-field theory."""
