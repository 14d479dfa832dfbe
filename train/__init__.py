"""Pretraining: shards stream into DeepSpeed workers and come out as a transformers model."""
