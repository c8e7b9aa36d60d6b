"""A training run under observation: events from torch, recorded steps, and what they add up to."""
