"""Dandolo: one gateway between OpenAI-compatible clients and many inference providers."""

__version__ = "0.1.0"
