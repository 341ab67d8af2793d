"""Versions that exports may have."""

OPSET = 18
"""Of ONNX's operators, by default."""
OPSETS = "[18, 23]"
"""Those in which PyTorch can export, as an interval."""
