"""Vectors: elementary functions, transposes, tiles in registers' shape, conversion between types."""
