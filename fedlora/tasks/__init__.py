"""Tasks: how a model, a batch, a per-record loss and the metrics of one kind of problem fit together."""
