"""Trained networks: where they come from, and what they say of themselves."""
