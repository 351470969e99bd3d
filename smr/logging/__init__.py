"""What a run shows and writes: console, metrics files, TensorBoard, figures."""
