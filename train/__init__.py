"""The commands of `jlora`: classify, lm, predict, generate, export and extract."""

import os

# transformers says on import that it found no PyTorch, which is how this product wants it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
