"""What a graph shows by reasoning alone."""
