"""Rows and labels of a classifier, from tables to batches."""
