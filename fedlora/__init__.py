"""fedlora: federated LoRA fine-tuning of Hugging Face models on data that may not leave its owners."""

__version__ = "0.1.0"
