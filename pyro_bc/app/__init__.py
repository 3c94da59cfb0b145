"""The command ``pyro-bc``: its networks, data sets, recipes, and the job from training to report."""
