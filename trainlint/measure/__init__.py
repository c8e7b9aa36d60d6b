"""What real passes of a model show: signals, gradients, and what influences what."""
