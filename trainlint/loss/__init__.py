"""Which loss judges a model, and what it asks of the scores."""
