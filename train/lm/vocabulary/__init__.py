"""Tokens that the base's vocabulary does not have, and the rows of the tables for them."""
