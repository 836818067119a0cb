"""Many adapters of one base in memory: a bank of slots, a function of all of them, and training of each."""
