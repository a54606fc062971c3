"""GPT-2 on the CPU, in rooms that import downwards only; see docs/architecture.md. Start reading in `model/gpt2.mojo`."""
