"""The trainer of text classifiers: `jlora classify`."""
