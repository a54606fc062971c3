"""The version of the programs: pyproject.toml's, as a test checks."""

comptime VERSION = "0.1.0"
