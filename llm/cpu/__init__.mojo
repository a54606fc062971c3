"""Kernels of the CPU: one file per operation, forward above backward."""
