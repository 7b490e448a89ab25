"""Training: settings, the trainer, the optimizer, checkpoints, logs and the export of the encoder."""
