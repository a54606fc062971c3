"""GPT-2 on the CPU: model, kernels, data and files. `gpt2.mojo` is the place to start reading."""
