"""`jlora sweep`: runs of one config that differ in a few keys are trained together, in as few programs as possible."""
