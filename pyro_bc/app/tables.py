"""A run's metrics as Markdown tables."""

import math
from collections.abc import Mapping
from typing import Any

from ..compression.sensitivity import Alone, Sensitivity
from ..posterior.judged import Judged, figure, rise

#: behind what a run is measured on, where nobody knows the targets: what the dense network says takes their place.
BESIDE_DENSE = ", beside the dense network"


def error_key(metric: str) -> str:
    """Under which name figures have an error, by the likelihood's metric: ``error_percent``, or ``rmse``."""
    return "error_percent" if "%" in metric else metric.lower()


def in_words(metric: str, error: float) -> str:
    """An error with its unit."""
    return f"error {figure(metric, error)} %" if "%" in metric else f"{metric} {figure(metric, error)}"


def metric_of(metrics: Mapping[str, Any]) -> str:
    """What errors are; runs of earlier versions were all of classes."""
    return str(metrics.get("metric", "error %"))


def inputs_in_words(found: Mapping[str, Any]) -> str:
    """What a user's inputs are, how many, and how they were normalised."""
    own = found["inputs"]
    sizes = own["examples"]
    held_out = f", {sizes['held_out']:,} held-out" if sizes["held_out"] else ""
    classes = own["classes"] if isinstance(own["classes"], int) else len(own["classes"])
    targets = f"of {classes} classes" if classes else f"of targets of the likelihood {own['likelihood']}"
    if own["likelihood"] is None:
        targets = "without targets"
    scales = own["normalisation"]
    if not scales:
        how = "read by the network as they are"
    else:
        pairs = list(zip(scales["input_mean"], scales["input_deviation"], strict=True))
        shown = ", ".join(f"{mean:.4g} ± {deviation:.4g}" for mean, deviation in pairs[:3])
        how = f"normalised inside the network: {shown}{f', … ({len(pairs)} in all)' if len(pairs) > 3 else ''}"
    count = f"{sizes['train']:,} training{held_out} and {sizes['test']:,} test examples"
    return f"Data: {count} {targets}; {own['what']}, {how}"


def rows(metrics: Mapping[str, Any]) -> list[tuple[str, float, list[int], Mapping[str, float]]]:
    """Rule, error, bits and compression under every rule of precision, the chosen one first."""
    key = error_key(metric_of(metrics))
    chosen = (
        metrics.get("precision", "learned"),
        metrics["compressed"][key],
        metrics["bits"],
        metrics["compression"],
    )
    others = metrics.get("other_precision", {}).items()
    return [chosen, *((rule, o[key], o["bits"], o["compression"]) for rule, o in others)]


def markdown(metrics: Mapping[str, Any]) -> str:
    """The metrics as a Markdown page."""
    dense, metric = metrics["dense"], metric_of(metrics)
    head = f"{metric[:1].upper()}{metric[1:]}".removesuffix(" %")
    size, before = f"{dense['parameters']:,} parameters", in_words(metric, dense[error_key(metric)]).partition(" ")[2]
    if dense.get("trained_parameters", dense["parameters"]) != dense["parameters"]:
        size = f"{dense['trained_parameters']:,} parameters, {dense['parameters']:,} with batch normalisation folded"
    if metrics["measured_on"].endswith(BESIDE_DENSE):
        head, before = f"{head}, counted where it disagrees with the dense network,", ""
    lines = [
        f"# {metrics['net']} on {metrics['data_name']}, prior {metrics['prior']}, seed {metrics['seed']}",
        "",
        f"{head} on the {metrics['measured_on'].removesuffix(BESIDE_DENSE)} ({metrics['n']:,} examples), of the "
        f"network decoded from the file. Dense network: {', '.join(filter(None, (size, before)))}.",
        "",
        f"| bits by rule | {metric} | architecture | bits | pruning | fast prediction | maximum | nonzero % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shape = "-".join(map(str, metrics["architecture"]))
    for rule, error, bits, c in rows(metrics):
        lines.append(
            f"| {rule} | {figure(metric, error)} | {shape} | {'-'.join(map(str, bits))} | {c['pruning']:.1f} | "
            f"{c['fast_prediction']:.1f} | {c['maximum']:.1f} | {c['nonzero_percent']:.2f} |"
        )
    cut = cuts_in_words(metrics["thresholds"])
    if "target" in metrics:
        lines += ["", target_in_words(metrics)]
    lines += [line for said in watched_in_words(metrics) for line in ("", said)]
    lines += [
        "",
        f"File: {metrics['file_bytes']:,} bytes ({metrics['precision']} rule). {cut}. {', '.join(_training(metrics))}, "
        f"{metrics['seconds']:.0f} s in all.",
        "",
    ]
    return "\n".join(lines)


def _training(metrics: Mapping[str, Any]) -> list[str]:
    """What was trained, in words."""
    recipe = metrics["recipe"]
    if "fit" not in recipe:
        return [f"{recipe['epochs']} epochs of training, rounded" if recipe["epochs"] else "Without training"]
    own, again = recipe["fit"], recipe["finetune"]
    weight = f"{own['kl_weight']:g}" if own["kl_weight"] is not None else "found while training"
    if own["kl_weight"] is None and "kl_weight" in metrics:
        weight = f"{metrics['kl_weight']:.2g}, {weight}"
    how = [f"{own['epochs']} epochs", f"KL weight {weight}"]
    if metrics["started_from"]:
        how.append(f"started from widths {'-'.join(map(str, metrics['started_from']))}")
    if "teacher" in metrics:
        teacher = metrics["teacher"]
        error = in_words(metric_of(metrics), teacher[error_key(metric_of(metrics))]).partition(" ")[2]
        how.append(f"taught by {teacher['net']} ({error})")
    if again["epochs"]:
        how.append(f"{again['epochs']} epochs of what was left, KL weight {again['kl_weight']:g}")
    for phase, pixels in (("", own["shift"]), (" of what was left", again["shift"])):
        if pixels:
            how.append(f"training pictures{phase} moved by up to {pixels} pixels")
    if own["flip"]:
        how.append("and mirrored")
    if own["affine"]:
        how.append(f"affine augmentation {own['affine']:g}")
    return how


def target_in_words(metrics: Mapping[str, Any]) -> str:
    """What had to be kept, what was reached, and what stood in the way."""
    own, metric = metrics["target"], metric_of(metrics)
    name, unit = ("error", " points") if "%" in metric else (metric, "")
    rises = {key: own["found"][key] - own["dense"][key] for key in ("error", "loss")}
    words = {
        "max_error_rise": f"{name} at most {own['limit']:g}{unit} above the dense network's",
        "max_loss_rise": f"loss at most {own['limit']:g} nats above the dense network's",
        "max_bytes": f"at most {own['limit']:,} bytes",
    }
    which = "nearest" if not own["is_met"] else "best" if own["kind"] == "max_bytes" else "smallest"
    return (
        f"Target: {words[own['kind']]}. {'Kept' if own['is_met'] else 'Missed'} on {own['held_out']:,} held-out "
        f"examples: {in_words(metric, own['found']['error'])} ({rise(metric, rises['error'])}{unit}), loss "
        f"{rises['loss']:+.3f} nats, {own['found']['file_bytes']:,} bytes ({own['found']['way']}), the "
        f"{which} of {len(own['curve'])} networks that were tried. "
        f"{own['obstacle']}"
    ).rstrip()


def sensitivity_of(metrics: Mapping[str, Any]) -> Sensitivity:
    """The table of sensitivity by layer; what was not finite is NaN."""
    own = metrics["sensitivity"]
    known = [_known(row, "code_bytes", "error", "loss") for row in own["rows"]]
    return Sensitivity(
        tuple(Alone(**row) for row in known), Judged(**_known(own["mean"], "error", "loss")), own["metric"]
    )


def _known(row: Mapping[str, Any], *numbers: str) -> dict[str, Any]:
    """A row of JSON, which has None for what is not finite."""
    return {**row, **{name: math.nan for name in numbers if row[name] is None}}


def watched_in_words(metrics: Mapping[str, Any]) -> list[str]:
    """What is to be said of a compression that went wrong, and the layer that costs most."""
    said = [f"Warning: {metrics['warning']}."] if "warning" in metrics else []
    if "sensitivity" in metrics:
        own, table = metrics["sensitivity"], sensitivity_of(metrics)
        mean, worst, of = table.mean, table.worst, f"{own['n']:,} examples of {own['measured_on']}"
        if worst.error > mean.error:
            told = (
                f"layer {worst.layer} costs most: {table.metric} {figure(table.metric, worst.error)} beside "
                f"{figure(table.metric, mean.error)}, on {of}"
            )
        else:
            told = f"no layer costs anything on {of}"
        said.append(f"Compressed alone, all others at their posterior means, {told}.")
    return said


def cuts_in_words(thresholds: Mapping[str, Mapping[str, Any]]) -> str:
    """Where layers were cut."""
    if all(cut["value"] is None for cut in thresholds.values()):
        return "Nothing was cut by a threshold"
    return "Thresholds: " + ", ".join(
        f"{name} none" if cut["value"] is None else f"{name} {cut['value']:.2f} ({cut['method']})"
        for name, cut in thresholds.items()
    )
