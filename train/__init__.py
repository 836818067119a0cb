"""The commands: python -m train.classify, python -m train.predict, python -m train.export."""

import os

# transformers says on import that it found no PyTorch, which is how this product wants it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
