"""What the operator of a server daemon talks to: an HTTP API behind a token, and the client of it."""
