"""Fine-tune a causal language model: jlora lm --config configs/smollm2.yaml [key=value ...]."""

import sys
from functools import partial

from jlora.closed_pipe import end_quietly
from train.task.command_line import main as main_of

main = partial(main_of, "train.lm")

if __name__ == "__main__":
    sys.exit(end_quietly(lambda: main(sys.argv[1:], alone=True)))
