"""The dashboard of a server daemon: runs, clients, privacy in a browser, behind a gate that denies by default."""
