"""The config groups as YAML; `fedlora simulate --help` lists them."""
