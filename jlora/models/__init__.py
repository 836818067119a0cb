"""Models of jlora's own, in Flax linen, with the names and numbers of Hugging Face's."""
