"""Training from one YAML file: `python -m train.classify --config configs/sst2.yaml`."""
