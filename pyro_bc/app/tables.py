"""A run's metrics as Markdown tables."""

import math
from collections.abc import Mapping
from typing import Any

from ..compression.sensitivity import Alone, Sensitivity
from ..posterior.judged import Judged


def rows(metrics: Mapping[str, Any]) -> list[tuple[str, float, list[int], Mapping[str, float]]]:
    """Rule, error, bits and compression under every rule of precision, the chosen one first."""
    chosen = (
        metrics.get("precision", "learned"),
        metrics["compressed"]["error_percent"],
        metrics["bits"],
        metrics["compression"],
    )
    others = metrics.get("other_precision", {}).items()
    return [chosen, *((rule, o["error_percent"], o["bits"], o["compression"]) for rule, o in others)]


def markdown(metrics: Mapping[str, Any]) -> str:
    """The metrics as a Markdown page."""
    dense = metrics["dense"]
    lines = [
        f"# {metrics['net']} on {metrics['data_name']}, prior {metrics['prior']}, seed {metrics['seed']}",
        "",
        f"Error on the {metrics['measured_on']} ({metrics['n']:,} examples), of the network decoded from the file. "
        f"Dense network: {dense['parameters']:,} parameters, {dense['error_percent']:.2f} %.",
        "",
        "| bits by rule | error % | architecture | bits | pruning | fast prediction | maximum | nonzero % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shape = "-".join(map(str, metrics["architecture"]))
    for rule, error, bits, c in rows(metrics):
        lines.append(
            f"| {rule} | {error:.2f} | {shape} | {'-'.join(map(str, bits))} | {c['pruning']:.1f} | "
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
    weight = "learned" if own["kl_weight"] is None else f"{own['kl_weight']:g}"
    how = [f"{own['epochs']} epochs", f"KL weight {weight}"]
    if metrics["started_from"]:
        how.append(f"started from widths {'-'.join(map(str, metrics['started_from']))}")
    if "teacher" in metrics:
        teacher = metrics["teacher"]
        how.append(f"taught by {teacher['net']} ({teacher['error_percent']:.2f} %)")
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
    own = metrics["target"]
    rises = {name: own["found"][name] - own["dense"][name] for name in ("error", "loss")}
    words = {
        "max_error_rise": f"error at most {own['limit']:g} points above the dense network's",
        "max_loss_rise": f"loss at most {own['limit']:g} nats above the dense network's",
        "max_bytes": f"at most {own['limit']:,} bytes",
    }
    return (
        f"Target: {words[own['kind']]}. {'Kept' if own['is_met'] else 'Missed'} on {own['held_out']:,} held-out "
        f"examples: error {own['found']['error']:.2f} % ({rises['error']:+.2f} points), loss {rises['loss']:+.3f} "
        f"nats, {own['found']['file_bytes']:,} bytes ({own['found']['way']}), the "
        f"{'best' if own['kind'] == 'max_bytes' else 'smallest'} of {len(own['curve'])} networks that were tried. "
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
        worst = table.worst
        said.append(
            f"Compressed alone, all others at their posterior means, layer {worst.layer} costs most: {table.metric} "
            f"{worst.error:.2f} beside {table.mean.error:.2f}, on {own['n']:,} examples of {own['measured_on']}."
        )
    return said


def cuts_in_words(thresholds: Mapping[str, Mapping[str, Any]]) -> str:
    """Where layers were cut."""
    if all(cut["value"] is None for cut in thresholds.values()):
        return "Nothing was cut by a threshold"
    return "Thresholds: " + ", ".join(
        f"{name} none" if cut["value"] is None else f"{name} {cut['value']:.2f} ({cut['method']})"
        for name, cut in thresholds.items()
    )
