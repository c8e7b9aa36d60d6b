"""ARC: how the layers are put together."""
