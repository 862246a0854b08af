"""Text-based person retrieval with CLIP: CSKT and its rivals under one harness."""

__version__ = "0.1.0"
