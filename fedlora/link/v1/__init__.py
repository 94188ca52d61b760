"""Generated from link.proto by `make protocol`; a test holds the two together."""
