"""A server for one base model and many adapters. It imports `jlora` only."""
