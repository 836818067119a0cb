"""Models in Flax linen, with the same names and outputs as Hugging Face's."""
