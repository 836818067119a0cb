"""A server for one base model and many adapters. Of this repository it imports only `jlora`."""
