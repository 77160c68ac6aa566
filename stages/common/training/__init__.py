"""What both training stages are made of: params, the loop, optimizers, backups, learning curve."""
