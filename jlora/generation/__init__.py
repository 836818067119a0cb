"""Tokens out of a model, and text out of tokens."""
