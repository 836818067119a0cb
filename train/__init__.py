"""The commands: python -m train.classify, train.predict, train.export and train.extract."""

import os

# transformers says on import that it found no PyTorch, which is how this product wants it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
