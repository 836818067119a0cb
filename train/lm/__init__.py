"""The trainer of causal language models: `jlora lm`, or `train.lm.run` in Python."""

from functools import partial

from train.task import from_python

run = partial(from_python.run, "train.lm")
run.__doc__ = from_python.run.__doc__
