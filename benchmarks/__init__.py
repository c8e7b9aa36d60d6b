"""Measurements behind the thresholds and the claims; each is a command."""
