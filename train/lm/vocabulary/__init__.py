"""Adds tokens that the base's vocabulary does not have, and rows for them to the tables."""
