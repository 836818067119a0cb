"""The commands of `jlora`, and what each of them does."""

COMMANDS = {
    "classify": "fine-tune a text classifier",
    "lm": "fine-tune a causal language model",
    "sweep": "train many runs of one config together",
    "predict": "label new text",
    "generate": "complete a prompt, or hold a chat",
    "serve": "answer with one base and many adapters: OpenAI's API and a page",
    "export": "merge an adapter, or write it for vLLM or llama.cpp",
    "extract": "make an adapter of a fully fine-tuned model",
    "configs": "list, print or copy the configs that come with jlora",
    "completion": "print what a shell completes command lines with",
}

TRAINING = ("classify", "lm", "sweep")
"""Those that train: `train.NAME.config` has what they take, `--config`, flags and every key."""
SERVING = ("serve",)
"""Those of the package `serve`, which `jlora.__main__` calls before the others are looked at."""
LIGHT = ("configs", "completion")
"""Those that need neither JAX nor transformers."""
