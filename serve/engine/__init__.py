"""What answers: adapters in a bank, rows of a cache, and the loop that fills both."""
