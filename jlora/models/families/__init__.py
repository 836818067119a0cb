"""Model families: a file for each `model_type` of Hugging Face's, and the parts that GPT-like and Llama-like share."""
