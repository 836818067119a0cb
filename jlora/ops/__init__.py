"""Array operations that models and the transform share: products, dropout and dropout keys."""
