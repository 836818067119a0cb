"""Writes the results of a run: adapter, merged model, model card, upload."""
