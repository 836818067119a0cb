"""Reads GGUF files (llama.cpp's format) and writes adapters in it."""
