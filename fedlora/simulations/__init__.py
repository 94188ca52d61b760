"""Virtual clients on one node, experiments and reports."""
