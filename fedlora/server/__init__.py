"""The coordinating side: round loop, admission, run store."""
