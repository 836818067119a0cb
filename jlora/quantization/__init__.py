"""Quantizes weights of a frozen base to 8 or 4 bits."""
