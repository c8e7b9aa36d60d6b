"""SUP: the suppression comments themselves."""
