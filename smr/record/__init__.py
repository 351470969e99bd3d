"""What a run shows and leaves: log, figures, pictures, labels."""
