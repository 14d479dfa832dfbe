"""Offline pipeline: raw text becomes cleaned, deduplicated, tokenized WebDataset shards with a manifest."""
