"""A run's figures for TensorBoard, MLflow and Weights & Biases, written by the server alone. See `docs/trackers.md`."""
