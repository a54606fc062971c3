"""Token shards: written, checked, and served in batches."""
