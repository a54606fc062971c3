"""From logits to tokens. Nothing here knows a tokenizer."""
