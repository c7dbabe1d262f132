"""What a training loop is made of: state, optimizer, step, checkpoints, metrics, guards, the run's folder."""
