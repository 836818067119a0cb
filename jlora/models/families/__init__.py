"""One file for each `model_type` of Hugging Face's, and what two groups of them are built from."""
