# %% [markdown]
# # From a network to a small file, and a look at what happened
#
# A script (`python analyses/examples/tutorial.py`) and a notebook (open it in Jupyter with Jupytext, or in VS Code):
# cells begin with `# %%`. It takes a minute on two cores and writes into `runs/tutorial`.

# %%
from pathlib import Path

import arviz as az
import matplotlib
import pyro
import torch

import pyro_bc
from pyro_bc.app.datasets import load_dataset
from pyro_bc.inspection import diagnostics, plots

matplotlib.use("Agg")  # a notebook shows pictures without this line
import matplotlib.pyplot as plt

OUT = Path("runs/tutorial")
OUT.mkdir(parents=True, exist_ok=True)


def keep(ax, name):
    ax.figure.savefig(OUT / f"{name}.png", dpi=120)


# %% [markdown]
# ## A network
#
# Any `nn.Module` with fully connected layers or convolutions. This one reads scikit-learn's digits, 8 x 8 pixels.

# %%
pyro.set_rng_seed(0)
data = load_dataset("digits").development()  # choices are made on held-out training data
net = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 50), torch.nn.ReLU(),
    torch.nn.Linear(50, 10),
)  # fmt: skip

# %% [markdown]
# ## Its posterior
#
# The model is Pyro's: every layer has sites for its groups' scales and its weights, which any handler sees.

# %%
model = pyro_bc.BayesianNetwork(net, prior=pyro_bc.GroupHorseshoe(), num_data=len(data.train_x))
trace = pyro.poutine.trace(model).get_trace(data.train_x[:2])
print("\n".join(f"{name:20} {tuple(site['value'].shape)}" for name, site in trace.iter_stochastic_nodes()))

# %%
guide = pyro_bc.FactorizedGuide(model)
batches = pyro_bc.data.Batches(data.train_x, data.train_y, 128)
frames = []
result = pyro_bc.fit(
    model, guide, batches, epochs=200, learning_rate=3e-3, log_learning_rate=2e-2, kl_weight=0.05,
    after_epoch=lambda epoch: frames.append(pyro_bc.summarize(guide)) if epoch.epoch % 10 == 0 else None,
)  # fmt: skip
keep(plots.training(result.history), "training")
keep(plots.kl_by_layer(result.history), "kl_by_layer")
keep(plots.groups_left(result.history), "groups_left")

# %% [markdown]
# ## What it would prune
#
# A group whose scale has no mode away from zero is one that the data do not ask for.

# %%
layers = pyro_bc.summarize(guide)
for name, layer in layers.items():
    keep(plots.group_statistics(layer), f"statistics-{name}")
keep(plots.pixel_importance(layers["net.1"], (8, 8)), "pixels")
plots.animate(
    frames, lambda layers, ax: plots.pixel_importance(layers["net.1"], (8, 8), ax=ax), OUT / "pixels.gif", fps=4
)

# %% [markdown]
# ## The same with ArviZ
#
# Log-likelihoods are of training points, as leave-one-out cross-validation wants them.

# %%
posterior = pyro_bc.to_inference_data(
    guide, data.train_x[:500], data.train_y[:500], draws=300, history=result.history
)  # fmt: skip
print(az.summary(posterior, var_names=["net.1.scale"], coords={"net.1.input": [10, 20, 30]}))
keep(plots.forest(posterior, "net.1"), "forest")
print(diagnostics.leave_one_out(posterior))
print(diagnostics.importance_ratios(guide, data.train_x, data.train_y, draws=100, kl_weight=0.05).message)
pyro_bc.save_inference_data(OUT / "posterior.nc", guide, draws=300, history=result.history)
again = az.from_netcdf(OUT / "posterior.nc")
print(again.posterior["net.1.scale"].dims)

# %% [markdown]
# Three of the pictures above, from that file, with ArviZ's own functions (of 0.2x; in ArviZ 1 `plot_dist` draws both
# histogram and densities).

# %%
axes = [plt.subplots(figsize=(5, 4), layout="constrained")[1] for _ in range(4)]
some = {"net.1.input": range(16, 32)}
az.plot_forest(again, var_names=["net.1.scale"], coords=some, combined=True, textsize=8, ax=axes[0])
az.plot_dist(again.constant_data["net.1.statistic"].values, kind="hist", ax=axes[1])
az.plot_kde(again.posterior["net.1.scale"].sel({"net.1.input": 20}).values, ax=axes[2])
again.sample_stats["kl_by_layer"].plot.line(x="epoch", ax=axes[3])
for ax, name in zip(axes, ("arviz-forest", "arviz-statistics", "arviz-scale", "arviz-kl"), strict=True):
    keep(ax, name)

# %% [markdown]
# ## The small network
#
# Pruned groups are gone, what is left has as many bits as the posterior's variances ask for.

# %%
small = pyro_bc.compress(model, guide)
size = small.save(OUT / "digits.pbc")
loaded = pyro_bc.load(OUT / "digits.pbc")
error = diagnostics.error_percent(loaded, data.test_x, data.test_y)
before = diagnostics.error_percent(diagnostics.mean_network(model, guide), data.test_x, data.test_y)
print(f"{small.architecture} groups, {small.bits} bits, {size:,} bytes; error {error:.2f} % ({before:.2f} % before)")
keep(plots.architecture(small), "architecture")
keep(plots.bits(layers, small), "bits")
keep(plots.file_sections(small), "file")
keep(plots.tradeoff(model, guide, data.test_x, data.test_y, layer="1"), "tradeoff")

# %% [markdown]
# ## Does it know what it does not know?

# %%
with torch.no_grad():
    probabilities = {
        "sampled": diagnostics.sampled_probabilities(guide, data.test_x),
        "mean": diagnostics.mean_network(model, guide)(data.test_x).softmax(1),
        "compressed": loaded(data.test_x).softmax(1),
    }
keep(
    plots.reliability({label: diagnostics.calibration(p, data.test_y, bins=8) for label, p in probabilities.items()}),
    "reliability",
)
plt.close("all")
print(f"pictures and files are in {OUT}; for a page with all of it: pyro-bc run … and pyro-bc report")
