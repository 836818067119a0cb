"""Reads the rows and labels of a classifier from tables and makes batches of them."""
