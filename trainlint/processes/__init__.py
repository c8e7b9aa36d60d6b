"""Child processes, in which users' files are run."""
