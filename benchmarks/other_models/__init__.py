"""LoRA on models of others: python -m benchmarks.other_models."""
