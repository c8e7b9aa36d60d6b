"""What a user may name, and how it becomes models."""
