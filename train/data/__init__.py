"""Tables of rows, random streams and batches of few shapes, whatever is trained."""
