"""Where model, tokenizer, data and the starting adapter come from."""
