"""GGUF files, as llama.cpp reads and loads them."""
