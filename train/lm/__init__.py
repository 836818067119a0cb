"""The trainer of causal language models: `python -m train.lm`."""
