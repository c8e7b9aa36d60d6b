"""GEN: training against evaluation, overfitting."""
