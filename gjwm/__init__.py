"""Gaussian joint-embedding world models."""

__version__ = "0.1.0"
