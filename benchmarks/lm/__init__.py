"""A LoRA step of a causal LM beside PEFT's: python -m benchmarks.lm."""
