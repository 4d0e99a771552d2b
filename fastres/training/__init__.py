"""Training: data, engine, checkpoints, evaluation, distribution, and the commands around them."""
