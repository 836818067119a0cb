"""What all trainers do around their loop: begin, resume, end and report a run."""
