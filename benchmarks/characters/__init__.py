"""What the characters of `make characters` have learnt: perplexity of held-out text, and answers to read."""
