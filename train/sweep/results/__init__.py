"""The results of a sweep: the runs compared, as tables, and as a picture."""
