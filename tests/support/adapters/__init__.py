"""Adapters with known contents."""
