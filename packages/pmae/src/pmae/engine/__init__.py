"""Training: loop, schedule, augmentation, checkpoints, several processes."""
