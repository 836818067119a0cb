"""Attention: which keys each query sees, and the kernels that compute it."""
