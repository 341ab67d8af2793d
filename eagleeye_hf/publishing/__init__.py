"""Checkpoints that timm, transformers and this package load, and their cards."""
