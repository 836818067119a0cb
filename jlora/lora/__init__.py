"""The parts of an adapter: its configuration, the modules that it targets, its entries and their matrices."""
