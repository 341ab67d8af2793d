"""Fine-tuning on one or many devices."""
