"""Tokenizers and token streams."""
