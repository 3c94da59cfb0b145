# %% [markdown]
# # From your own network to a small file, and a look at what happened
#
# A network is trained as always, becomes a Pyro model, is fitted, and is stored as small as a promise about its error
# allows. This page is `tutorial.py` beside it, run by `python analyses/examples/notebook.py`; both take about a minute.

# %%
import arviz as az
import matplotlib.pyplot as plt
import torch

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.inspection import diagnostics, plots

torch.manual_seed(0)
data = load_dataset("digits").development()  # scikit-learn's digits; choices are made on held-out training data
held_out = [(data.test_x, data.test_y)]
loader = pyro_bc.data.Batches(data.train_x, data.train_y, 128)

# %% [markdown]
# ## A network of your own
#
# Any `nn.Module` that `torch.export` reads, trained in any way.

# %%
net = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 50), torch.nn.ReLU(),
    torch.nn.Linear(50, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(net.parameters(), 2e-3)
for _ in range(60):
    for x, y in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
print(f"{diagnostics.error_percent(net, data.test_x, data.test_y):.2f} % of held-out examples are wrong")

# %% [markdown]
# ## Before the training: what would become of it?

# %%
prior = pyro_bc.GroupHorseshoe()
pyro_bc.check(net, data.train_x, data.train_y, prior)

# %% [markdown]
# ## Its posterior
#
# While it is fitted, what counts is the error of the network that would be stored, on data that no training sees. The
# KL's weight is given here; with `target=pyro_bc.Target(max_error_rise=1.0)` it is learned.

# %%
model = pyro_bc.BayesianNetwork(net, prior, num_data=len(data.train_x))
guide = pyro_bc.FactorizedGuide(model)
result = pyro_bc.fit(
    model, guide, loader, epochs=100, kl_weight=0.1, learning_rate=3e-3, log_learning_rate=2e-2, held_out=held_out
)
result

# %% [markdown]
# ## What it would prune
#
# A group whose scale has no mode away from zero is one that the data do not ask for: pixels without ink, for one.

# %%
layers = pyro_bc.summarize(guide)
_, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
plots.group_statistics(layers["net.3"], ax=axes[0])
ax = plots.pixel_importance(layers["net.1"], (8, 8), ax=axes[1])

# %% [markdown]
# ## The same with ArviZ
#
# The posterior is xarray's: `pyro_bc.save_inference_data` writes it as netCDF. Log-likelihoods are of training points,
# as leave-one-out cross-validation wants them.

# %%
posterior = pyro_bc.to_inference_data(guide, data.train_x[:300], data.train_y[:300], draws=200, history=result.history)
print(diagnostics.leave_one_out(posterior))
az.summary(posterior, var_names=["net.1.scale"], coords={"net.1.input": [10, 20, 30]}, kind="stats")

# %% [markdown]
# ArviZ's own functions draw it (of 0.2x; ArviZ 1 has `plot_dist` for both pictures on the right).

# %%
_, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
some = {"net.1.input": range(16, 32)}
az.plot_forest(posterior, var_names=["net.1.scale"], coords=some, combined=True, textsize=7, ax=axes[0])
az.plot_dist(posterior.constant_data["net.1.statistic"].values, kind="hist", ax=axes[1])
ax = az.plot_kde(posterior.posterior["net.1.scale"].sel({"net.1.input": 20}).values, ax=axes[2])

# %% [markdown]
# ## Which layer has room?
#
# One layer compressed alone, the others at their posterior means.

# %%
pyro_bc.sensitivity(model, guide, held_out)

# %% [markdown]
# ## The smallest file that keeps a promise
#
# One number: the error may rise by a point on held-out data. All prices are found; the curve has every network tried.

# %%
target = pyro_bc.Target(max_error_rise=1.0)
reached = pyro_bc.compress_to(model, guide, target, loader, held_out)
reached

# %% [markdown]
# ## The file
#
# It loads without pickle and without the class, gives what was judged, and knows about as well what it does not know.

# %%
reached.network.save("digits.pbc")
loaded = pyro_bc.load("digits.pbc")
print(f"{diagnostics.error_percent(loaded, data.test_x, data.test_y):.2f} % of held-out examples are wrong")
with torch.no_grad():
    probabilities = {
        "sampled": diagnostics.sampled_probabilities(guide, data.test_x),
        "compressed": loaded(data.test_x).softmax(1),
    }
found = {label: diagnostics.calibration(p, data.test_y, bins=8) for label, p in probabilities.items()}
ax = plots.reliability(found, plt.subplots(figsize=(4, 3), layout="constrained")[1])
