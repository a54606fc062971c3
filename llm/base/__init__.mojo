"""What everything stands on: memory, files, numbers and text, JSON, SHA-256, random numbers."""
