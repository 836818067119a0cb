"""Tables of rows, random streams and batches of few shapes, for all training commands."""
