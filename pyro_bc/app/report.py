"""What a run came to, for readers: a Markdown table, pictures, and one HTML page that holds everything.

The page needs no network and no scripts; pictures are in it. It is made from the files of a run's folder alone.
"""

import base64
import gc
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PyroBCError, UsageError
from ..file import compressed
from ..inference.history import Epoch
from ..inspection import plots
from ..inspection.arviz import arviz_package, history_of, layer_posteriors
from ..inspection.diagnostics import Calibration
from ..inspection.probe import check_netcdf
from ..posterior.judged import figure
from ..posterior.summary import LayerPosterior
from ..posterior.thresholds import Threshold
from ..quantisation.rounding import RULES
from ..runtime.files import read_object, readable, write_atomically
from ..runtime.html import paragraph, table
from ..runtime.markup import Markup, joined, markup
from ..runtime.messages import first_line
from .folder import check_places
from .metrics import without_nan
from .settings import command, flat
from .tables import (
    cuts_in_words,
    error_key,
    in_words,
    inputs_in_words,
    markdown,
    metric_of,
    rows,
    sensitivity_of,
    target_in_words,
    watched_in_words,
)


def progress_pictures(folder: Path, history: Sequence[Epoch], layers: Mapping[str, LayerPosterior]) -> None:
    """Refresh the pictures of a fit that is under way, in ``folder``."""
    _save(folder / "training.png", lambda ax: plots.training(history, ax))
    if history[-1].groups_left:
        _save(folder / "groups_left.png", lambda ax: plots.groups_left(history, ax))
    for name, layer in layers.items():
        if layer.statistic is not None:
            short = name.removeprefix("net.")
            _save(folder / f"{_file_name(f'statistics-{short}')}.png", partial(_statistics, layer))


def _file_name(name: str) -> str:
    """A name, a layer's for instance, that leads into no other folder."""
    return re.sub(r"[^\w.+-]", "_", name)[:100]


def _statistics(layer: LayerPosterior, ax: Any) -> Any:
    return plots.group_statistics(layer, ax=ax)


def _picture(draw: Callable[[Any], Any], size: tuple[float, float] = (4.8, 3.3)) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    data = io.BytesIO()
    with warnings.catch_warnings():
        # On a busy machine, where placing a legend takes a second; nobody can do anything about it.
        warnings.filterwarnings("ignore", "Creating legend with loc")
        figure.savefig(data, format="png", dpi=130)
    return data.getvalue()


def _save(path: Path, draw: Callable[[Any], Any]) -> bytes:
    path.parent.mkdir(exist_ok=True)
    data = _picture(draw)
    write_atomically(path, data)
    return data


def write_report(folder: str | Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` and ``plots/*.png`` into a finished run's folder, from the files in it.

    :param metrics: None for those in ``metrics.json``.
    :returns: the page's path.
    :raises UsageError: where the folder holds no finished run, or one of its files is damaged.
    :raises OutputError: where something is in the way of what is written.
    """
    folder = Path(folder)
    for name in ("run.json", "network.pbc", "posterior.nc", "metrics.json")[: 4 if metrics is None else 3]:
        if not (folder / name).is_file():
            raise UsageError(f"'{folder}' holds no '{name}': it is no folder of a finished pyro-bc run")
    if metrics is not None:
        return _written(folder, metrics)
    check_places(folder)
    advice = "the report is made from it: run the job anew in another folder"
    metrics = read_object(folder / "metrics.json", UsageError, advice)
    for name in ("posterior.nc", "finetune.nc"):
        if (folder / name).is_file():
            with readable(folder / name, "is no posterior that ArviZ reads", UsageError):
                check_netcdf(folder / name)
    try:
        return _written(folder, metrics)
    except (PyroBCError, OSError):
        raise
    except Exception as error:  # whatever comes of numbers and names that are not those of a run
        raise UsageError(
            f"the files in '{folder}' are not what this version of pyro-bc writes ({type(error).__name__}: "
            f"{first_line(error)}): run the job anew in another folder"
        ) from error


def _posterior(file: Path) -> Any:
    """What ArviZ reads from an exported posterior.

    :raises UsageError: where it cannot.
    """
    reason, before = "", sys.unraisablehook
    # What was opened halfway fails once more when it is given up, and Python would print that.
    sys.unraisablehook = lambda unraisable: None
    try:
        try:
            return arviz_package().from_netcdf(file)
        except Exception as error:  # HDF5, xarray and ArviZ each have their own
            reason = first_line(error)
        gc.collect()
    finally:
        sys.unraisablehook = before
    raise UsageError(f"'{file}' is no posterior that ArviZ reads: {reason}")


def _written(folder: Path, metrics: Mapping[str, Any]) -> Path:
    """The page, made from a run's files."""
    settings = read_object(folder / "run.json", UsageError, "it says how the run was made")
    small = compressed.read(folder / "network.pbc")
    first = _posterior(folder / "posterior.nc")
    last = _posterior(folder / "finetune.nc") if (folder / "finetune.nc").is_file() else first
    layers, last_layers = layer_posteriors(first), layer_posteriors(last)
    cuts = metrics.get("pruning_thresholds", metrics["thresholds"])
    pruning_cuts = {
        name: Threshold(math.inf if cut["value"] is None else cut["value"], cut["method"]) for name, cut in cuts.items()
    }
    history = history_of(first)
    shape = np.atleast_1d(first["constant_data"].attrs.get("input_shape", ()))

    checks, how_cut = metrics.get("diagnostics", {}), f"{cuts_in_words(cuts)}."
    # What the figures do not give is said now, and not when all pictures have been drawn.
    _page(metrics, settings, how_cut, checks, [("Can it be trusted", "", "", b"", None)])
    pages = _Pages(folder)
    add = pages.add
    add("What is left", "architecture", lambda ax: plots.architecture(small, ax), plots.architecture)
    add("What is left", "file", lambda ax: plots.file_sections(small, ax), plots.file_sections)
    # A code's posterior is as wide as its step, everywhere: there is nothing to see.
    if len(last_layers) == len(small.whole_layers) and metrics["precision"] in RULES:
        add("What is left", "bits", lambda ax: plots.bits(last_layers, small, ax), plots.bits)
    if "target" in metrics:
        own = metrics["target"]
        curve = [(point["file_bytes"], point["error"]) for point in own["curve"]]
        chosen = own["found"]["file_bytes"], own["found"]["error"]
        add(
            "The target", "curve", lambda ax: plots.error_against_bytes(curve, chosen, own["dense"]["error"], ax),
            plots.error_against_bytes,
        )  # fmt: skip
    for name, layer in layers.items():
        short = name.removeprefix("net.")
        if layer.statistic is not None:
            cut = pruning_cuts.get(short)
            add(
                "Where it was cut", f"statistics-{short}",
                lambda ax, layer=layer, cut=cut: plots.group_statistics(layer, cut, ax), plots.group_statistics,
            )  # fmt: skip
    one = next(iter(layers.values()))
    pixels = int(np.prod(shape[-2:])) if len(shape) == 3 else 0
    if pixels and one.weight_mean.dim() == 2 and one.weight_mean.shape[1] % pixels == 0:
        size = int(shape[-2]), int(shape[-1])
        cut = pruning_cuts.get(one.name.removeprefix("net."))
        add("Where it was cut", "pixels", lambda ax: plots.pixel_importance(one, size, cut, ax), plots.pixel_importance)
    if history:
        add("Training", "training", lambda ax: plots.training(history, ax), plots.training)
        if any(record.held_out_error is not None for record in history):
            where = metrics["course"]["measured_on"] if "course" in metrics else "held-out data"
            add("Training", "watched", lambda ax: plots.watched(history, where, ax), plots.watched)
        if history[0].kl_by_layer:
            add("Training", "kl", lambda ax: plots.kl_by_layer(history, ax), plots.kl_by_layer)
        if history[-1].groups_left:
            add("Training", "groups_left", lambda ax: plots.groups_left(history, ax), plots.groups_left)
    scaled = [name for name in layers if f"{name}.scale" in first["posterior"]]
    for name in scaled[:1]:
        add("Can it be trusted", "forest", lambda ax, name=name: plots.forest(first, name, ax=ax), plots.forest)
    if "calibration" in checks:
        found = {
            label: Calibration(c["error"], *(np.array(c[k], dtype=float) for k in ("confidence", "accuracy", "count")))
            for label, c in checks["calibration"].items()
        }
        add("Can it be trusted", "reliability", lambda ax: plots.reliability(found, ax), plots.reliability)
    page = _page(metrics, settings, how_cut, checks, pages.pictures)
    write_atomically(folder / "report.html", page.encode(errors="backslashreplace"))
    return folder / "report.html"


def write_results(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Write what a run came to: ``report.md``, the page, and ``metrics.json`` last; returns the metrics as in it.

    :param metrics: what is not finite is None in the files.
    """
    told = without_nan(dict(metrics))
    write_atomically(folder / "report.md", markdown(told).encode(errors="backslashreplace"))
    write_report(folder, told)
    write_atomically(folder / "metrics.json", (json.dumps(told, indent=2, allow_nan=False) + "\n").encode())
    return told


class _Pages:
    """Pictures for a page: section, name, how to read it, the picture, and what drew it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pictures: list[tuple[str, str, str, bytes, Callable[..., Any]]] = []

    def add(self, section: str, name: str, draw: Callable[..., Any], function: Callable[..., Any]) -> None:
        """Draw a picture, and take from a function's docstring how to read it, once."""
        how = ""
        if not any(drawn_by is function for *_, drawn_by in self.pictures):
            how = (function.__doc__ or "").split("Read: ")[-1].split(":param")[0].split(":raises")[0]
            how = " ".join(how.split())
            how = how[:1].upper() + how[1:]
        picture = _save(self.folder / "plots" / f"{_file_name(name)}.png", draw)
        self.pictures.append((section, name, how, picture, function))


def findings(checks: Mapping[str, Any]) -> list[str]:
    """The diagnostics in words."""
    lines = [checks["importance"]["message"]] if "importance" in checks else []
    if "calibration" in checks:
        sampled, mean, small = (100 * checks["calibration"][key]["error"] for key in ("sampled", "mean", "compressed"))
        lines.append(
            f"Calibration (expected calibration error, {checks['calibration_points']:,} points of the "
            f"{checks['measured_on']}): {sampled:.1f} % averaged over drawn weights, {mean:.1f} % at the posterior "
            f"mean, {small:.1f} % of the compressed network."
        )
    loo = checks["loo"]
    if loo["elpd"] is None:
        lines.append(
            "Leave-one-out cross-validation has no finite result: of some points all draws say the same, or one "
            "outweighs all others."
        )
        return lines
    reliable = "all of them reliable" if not loo["unreliable"] else (
        f"{loo['unreliable']:,} of them with a Pareto k above 0.7, so that the estimate is no more than a rough one"
    )  # fmt: skip
    lines.append(
        f"Leave-one-out cross-validation (PSIS-LOO, {loo['points']:,} training points, {reliable}): expected log "
        f"predictive density {loo['elpd']:.1f} ± {loo['se']:.1f} nats, {loo['p']:.1f} effective parameters."
    )
    return lines


_STYLE = Markup("""
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --back: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --back: #0d1117; --card: #151b23; }
}
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, figcaption, li { max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure img { width: 100%; height: auto; background: #fff; border-radius: .25rem; display: block; }
figcaption { margin-top: .5rem; }
.key { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; list-style: none; }
.key li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; }
.key b { display: block; font-size: 1.3rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
""")


def _page(metrics: Mapping[str, Any], settings: Any, how_cut: str, checks: Any, pictures: list[Any]) -> Markup:
    figures, dense = metrics["compression"], metrics["dense"]
    metric = metric_of(metrics)
    name = error_key(metric)
    what, _, value = in_words(metric, metrics["compressed"][name]).partition(" ")
    before = in_words(metric, dense[name]).partition(" ")[2]
    key = [
        (value, f"{what} on the {metrics['measured_on']} (dense {before})"),
        (f"{metrics['file_bytes']:,} bytes", f"file, of {4 * dense['parameters']:,} dense"),
        (f"{figures['maximum']:.0f} times", "smaller"),
        ("-".join(map(str, metrics["architecture"])), "groups left, layer by layer"),
        ("-".join(map(str, metrics["bits"])), "bits of a weight"),
    ]
    title = f"{metrics['net']} on {metrics['data_name']}, prior {metrics['prior']}"
    parts = [
        markup('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'),
        markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        markup("<title>{title}</title>", title=title), markup("<style>{style}</style>\n</head>", style=_STYLE),
        markup("<body>\n<h1>{title}</h1>\n<ul class=\"key\">", title=title),
        *(markup("<li><b>{value}</b>{key}</li>", value=value, key=key) for value, key in key),
        markup('</ul>\n<div class="wide">\n{table}\n</div>', table=_table(metrics)),
    ]  # fmt: skip
    if "target" in metrics:
        parts.append(paragraph(target_in_words(metrics)))
    if "inputs" in metrics:
        parts.append(paragraph(f"{inputs_in_words(metrics)}."))
    parts += [paragraph(said) for said in watched_in_words(metrics)]
    how_cut = f"{what[:1].upper()}{what[1:]} is that of the network decoded from the file. {how_cut}"
    parts.append(markup('<p class="soft">{how_cut}</p>', how_cut=how_cut))
    for section in dict.fromkeys(section for section, *_ in pictures):
        parts.append(markup("<h2>{section}</h2>", section=section))
        if section == "Can it be trusted" and checks:
            lines = joined(markup("<li>{line}</li>", line=line) for line in findings(checks))
            parts.append(markup("<ul>\n{lines}\n</ul>", lines=lines))
        figure = [_figure(name, how, data) for own, name, how, data, _ in pictures if own == section]
        parts.append(markup('<div class="figures">\n{figures}\n</div>', figures=joined(figure, "\n")))
    if "sensitivity" in metrics:
        parts += _sensitivity(metrics)
    told = {name: value for name, value in flat(metrics["recipe"]).items() if value not in (None, "")}
    recipe = ", ".join(f"{name.replace('.', ' ').replace('_', ' ')} {value}" for name, value in told.items())
    how = f"Recipe: {recipe}. {metrics['seconds']:.0f} seconds, seed {metrics['seed']}."
    parts += [
        markup("<h2>How it was made</h2>\n<pre>{command}</pre>", command=command(settings)),
        markup('<p class="soft">{how}</p>\n</body>\n</html>\n', how=how),
    ]
    return joined(parts, "\n")


def _figure(name: str, how: str, picture: bytes) -> Markup:
    source = "data:image/png;base64," + base64.b64encode(picture).decode()
    caption = markup("<figcaption>{how}</figcaption>", how=how) if how else Markup()
    return markup(
        '<figure><img alt="{name}" src="{source}">{caption}</figure>', name=name, source=source, caption=caption
    )


def _table(metrics: Mapping[str, Any]) -> Markup:
    head = ("bits by rule", metric_of(metrics), "bits", "pruning", "fast prediction", "maximum", "nonzero %")
    return table(
        head,
        (
            (
                rule, figure(metric_of(metrics), error), "-".join(map(str, bits)), f"{c['pruning']:.1f}",
                f"{c['fast_prediction']:.1f}",
                f"{c['maximum']:.1f}", f"{c['nonzero_percent']:.2f}",
            )
            for rule, error, bits, c in rows(metrics)
        ),
    )  # fmt: skip


def _sensitivity(metrics: Mapping[str, Any]) -> list[Markup]:
    """The table of sensitivity, and how to read it."""
    own, found = metrics["sensitivity"], sensitivity_of(metrics)
    how = (
        f"One layer compressed alone, all others at their posterior means (the first row), on {own['n']:,} examples of "
        f"{own['measured_on']}. Chosen: steps that the posterior asks for; below them steps two, four and eight times "
        f"as large, then half and a quarter of the groups, not rounded. Where a row costs nothing, the layer has room. "
        f"Bytes are of its weights."
    )
    if metrics["precision"] == "rate":
        how += " Here weights are rounded to the nearest; the file's made up for each other, at a price of a bit."
    return [
        markup("<h2>Layer by layer</h2>"),
        markup('<div class="wide">{table}</div>', table=table(found.head, found.cells())),
        markup('<p class="soft">{how}</p>', how=how),
    ]
