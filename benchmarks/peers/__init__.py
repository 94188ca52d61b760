"""Other simulators on the workload of `benchmarks.simulation`, each in an environment of its own."""
