"""The commands of `jlora`: classify, lm, predict, generate, export and extract."""

import os

# transformers would warn on import that PyTorch is missing, which is intended here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
