"""`trainlint check`'s probe: train a model for some steps, watched, with what its file or user gives."""
