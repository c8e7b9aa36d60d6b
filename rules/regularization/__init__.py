"""REG: dropout and other regularisation."""
