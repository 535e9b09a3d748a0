"""Training sets, fitting and the bundle that training and serving share."""
