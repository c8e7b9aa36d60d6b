"""What the data that a model is trained on are like: read, described, compared. No training."""
