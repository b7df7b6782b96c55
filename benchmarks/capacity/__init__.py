"""How many long requests fit at once, and what that is worth: stock and Jenga servers compared."""
