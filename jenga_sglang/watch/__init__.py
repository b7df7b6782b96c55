"""A running server seen from outside: in a terminal, as a file, and one question at a time."""
