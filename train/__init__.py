"""Training and honest evaluation on RAVDESS."""
