"""The trainer of causal language models: `jlora lm`."""
