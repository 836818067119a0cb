"""Functions of every make that the laws are held on."""
