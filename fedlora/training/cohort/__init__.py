"""Several clients' adapters trained in one pass over one frozen base."""
