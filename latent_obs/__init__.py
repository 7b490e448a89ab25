"""What runs beside an agent: the frozen encoder and the wrappers that turn pixels into mean latent vectors."""
