"""Generates tokens from a model, and decodes tokens to text."""
