"""Reading images and labels, and serving them in batches."""
