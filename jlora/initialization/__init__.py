"""All initializations of adapters."""
