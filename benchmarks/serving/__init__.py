"""The server and its engine: many adapters beside the base alone."""
