"""A run's metrics as Markdown tables."""

from collections.abc import Mapping
from typing import Any


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
    recipe, also = metrics["recipe"], ""
    if recipe["finetune_epochs"]:
        also = f"{recipe['finetune_epochs']} epochs of what was left, KL weight {recipe['finetune_kl_weight']:g}, "
    for phase, pixels in (("", recipe["shift"]), (" of what was left", recipe["finetune_shift"])):
        if pixels:
            also += f"training pictures{phase} moved by up to {pixels} pixels, "
    if recipe["flip"]:
        also += "and mirrored, "
    how = cuts_in_words(metrics["thresholds"])
    lines += [
        "",
        f"File: {metrics['file_bytes']:,} bytes ({metrics['precision']} rule). Thresholds: {how}. "
        f"{recipe['epochs']} epochs, KL weight {recipe['kl_weight']:g}, {also}{metrics['seconds']:.0f} s in all.",
        "",
    ]
    return "\n".join(lines)


def rate_markdown(metrics: Mapping[str, Any]) -> str:
    """The metrics of a run under the objective ``rate`` as a Markdown page."""
    dense, teacher, recipe, c = (metrics[key] for key in ("dense", "teacher", "recipe", "compression"))
    shape, bits = ("-".join(map(str, metrics[key])) for key in ("architecture", "bits"))
    return "\n".join([
        f"# {metrics['net']} on {metrics['data_name']}, objective rate, seed {metrics['seed']}",
        "",
        f"Error on the {metrics['measured_on']} ({metrics['n']:,} examples), of the network decoded from the file. "
        f"Dense network: {dense['parameters']:,} parameters, {dense['error_percent']:.2f} %.",
        "",
        "| error % | architecture | bits | pruning | fast prediction | maximum | nonzero % |",
        "|---|---|---|---|---|---|---|",
        f"| {metrics['compressed']['error_percent']:.2f} | {shape} | {bits} | {c['pruning']:.1f} | "
        f"{c['fast_prediction']:.1f} | {c['maximum']:.1f} | {c['nonzero_percent']:.2f} |",
        "",
        f"File: {metrics['file_bytes']:,} bytes. {recipe['epochs']} epochs, KL weight {recipe['kl_weight']:g}, started "
        f"from widths {'-'.join(map(str, metrics['started_from'])) or 'of the dense network'}, taught by "
        f"{teacher['net']} ({teacher['error_percent']:.2f} %), affine augmentation {recipe['affine']:g}, "
        f"{metrics['seconds']:.0f} s in all.",
        "",
    ])  # fmt: skip


def cuts_in_words(thresholds: Mapping[str, Mapping[str, Any]]) -> str:
    """Thresholds in words."""
    return ", ".join(
        f"{name} none" if cut["value"] is None else f"{name} {cut['value']:.2f} ({cut['method']})"
        for name, cut in thresholds.items()
    )
