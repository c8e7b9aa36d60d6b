"""DAT: the data as the model gets them, and their order."""
