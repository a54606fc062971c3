"""Threads that work side by side, and how many there should be."""
