"""The `fedlora` command."""
