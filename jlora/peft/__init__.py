"""PEFT's adapter folders and what is written into them."""
