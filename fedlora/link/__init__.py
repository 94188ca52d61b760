"""The link between a server and its clients: `fedlora.v1` over gRPC, with mutual TLS."""
