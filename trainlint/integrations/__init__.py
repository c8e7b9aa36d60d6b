"""Where trainlint meets other tools."""
