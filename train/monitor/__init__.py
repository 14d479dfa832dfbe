"""What people see of a run: metrics.jsonl, TensorBoard, logs and the terminal."""
