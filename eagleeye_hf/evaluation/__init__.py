"""Recomputing BatchNorm statistics, and scoring."""
