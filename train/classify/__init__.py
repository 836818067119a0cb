"""The trainer of text classifiers: `jlora classify`, or `train.classify.run` in Python."""

from functools import partial

from train.task import from_python

run = partial(from_python.run, "train.classify")
run.__doc__ = from_python.run.__doc__
