"""A run: its steps, what it remembers, its folder."""
