"""What a run hands out: adapter, merged model, model card, upload."""
