"""The trainer of text classifiers: `python -m train.classify`."""
