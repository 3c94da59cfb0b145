"""Networks as Pyro models: Bayesian layers, likelihoods, and the guide."""
