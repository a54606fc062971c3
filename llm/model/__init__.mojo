"""GPT-2: its sizes, its tensors, its passes. `gpt2.mojo` is the place to start reading."""
