"""Finds and loads model, tokenizer, data and the starting adapter."""
