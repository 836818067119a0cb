"""What a file that somebody else made may claim or cost at most: docs/loading-untrusted-files.md has it in words."""

from __future__ import annotations

LARGEST_JSON = 2**24
"""Bytes of JSON, and of the header of a safetensors file. Indexes of many shards have 10 MB; parsed, they take more."""
LARGEST_ADAPTER_CONFIG = 2**20
"""Bytes of adapter_config.json: each of its patterns is tried on the name of each module."""
LARGEST_TOKENIZER = 2**27
"""Bytes of a tokenizer's files together. The tokenizer.json of 250,000 tokens has 35 MB."""
LARGEST_GGUF_METADATA = 2**25
"""Bytes of a GGUF file's metadata. A vocabulary of 250,000 tokens has 10 MB; parsed, it takes more."""
LARGEST_YAML = 2**20
"""Bytes of a YAML file; a config has a few thousand."""
MOST_YAML_VALUES = 20_000
"""Values of a YAML text, after aliases are expanded."""

MOST_LAYERS = 1000
MOST_LABELS = 1_000_000
LONGEST_LAYER_PATTERN = 128
"""The most layers after which their types may repeat."""
LARGEST_SIZE = 2**24
"""Every other count in a model: tokens of the vocabulary, positions, heads, the hidden size."""
LARGEST_NUMBER = 1e30
"""A number of a model's config that is not a count, such as the base of RoPE. Larger ones soon overflow float32."""

MOST_RANK = 2**16
"""An adapter's scales, one for each rank that its file claims, are made before tensors are read."""
PATTERN_SECONDS = 5.0
"""CPU seconds for all expressions of an adapter's config on all names of a model. A model of 126 layers takes one."""

MOST_NUMBERS = 2**48
"""Numbers of a tensor: more than any disk holds. Products of axis sizes cannot overflow, also if one axis is 0."""
MOST_AXES = 32
MOST_GGUF_AXES = 4
"""As in llama.cpp."""
MOST_GGUF_FIELDS = 2**16
"""Also the most tensors."""
LONGEST_TOKEN = 256
"""Characters of a GGUF file's token: SentencePiece's merges are searched at each position of each token."""
MOST_MERGES = 2**21
"""Ways to join two SentencePiece tokens of a GGUF file. Gemma's 256,000 tokens have 600,000."""

LONGEST_TEMPLATE = 100_000
"""Characters of a chat template, which take seconds to compile if all are tags. The longest in use have 20,000."""
MOST_TEMPLATE_WORK = 50_000_000
"""Of one rendering, in characters; an operation counts as some tens of them. It takes some seconds."""
MOST_TEMPLATE_BITS = 10_000
"""Of a number that a template computes."""
