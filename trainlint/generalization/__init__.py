"""How well what is learnt holds for other samples: measured, with its error."""
