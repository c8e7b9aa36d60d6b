"""NRM: normalisation layers."""
