"""INI: the values that training starts from."""
