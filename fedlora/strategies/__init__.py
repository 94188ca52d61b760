"""Federated LoRA methods, one file each."""
