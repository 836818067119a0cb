"""Makes examples and batches of tokens from the rows of a data set."""
