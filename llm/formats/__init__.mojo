"""llm.c's files byte by byte: plain values in, plain values out."""
