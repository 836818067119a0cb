"""What an adapter is: its configuration, the modules that it means, its entries and their matrices."""
