"""The command ``pyro-bc``: run, compress, evaluate, inspect, export, report."""

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from ..compression.rate import DIVERGENCE
from ..errors import CompressedFileError, OutputError, PyroBCError, UsageError, printable
from ..file import compressed
from ..file.onnx import OnnxNetwork, pack, to_int8, to_onnx
from ..quantisation.rounding import RULES
from ..runtime import processes
from ..runtime.files import check_target, check_temporary
from ..runtime.messages import first_line
from .columns import ENDINGS as TABLES
from .compress_job import compress_trained
from .datasets import DATASETS, Dataset
from .job import run
from .metrics import test_error
from .networks import NETWORKS
from .observed import LIKELIHOODS
from .own_data import load_data
from .pairing import in_its_classes, inputs_beside, likelihood_beside, paired, table_beside
from .report import write_report
from .settings import PRIORS, CompressSettings, Settings, options_of
from .tables import error_key, in_words, markdown

_OWN_NETWORK = "your own: package.module:function, path/to/file.py:Class"

_DATA = (
    f"{', '.join(DATASETS)}; or the path of your own: a folder of pictures by class, .npz, .npy, .safetensors, .csv, "
    f".parquet, raw idx or CIFAR files"
)

# What a shell says of a program that ended since nobody reads what it writes.
_CLOSED = 141

#: what ``--objective rate`` means.
LEARNED = "learned"


class _Parser(argparse.ArgumentParser):
    """One clear line on bad arguments, instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def _tell(text: object) -> None:
    """Print lines in which nothing makes a terminal do anything.

    :raises OutputError: where the standard output stream takes none.
    """
    try:
        print("\n".join(printable(line) for line in str(text).split("\n")), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the standard output cannot be written: {error.strerror or error}") from None


def _say(line: object) -> None:
    """One line on the standard error stream, likewise."""
    if sys.stderr is not None:  # print would take the other stream
        print(printable(str(line)), file=sys.stderr)


def _has_terminal() -> bool:
    """Whether somebody looks at the standard error stream, which a program may have been started without."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """A context in which a warning is one line, once, without the place in our code where it arose."""
    said: set[str] = set()

    def tell(message: Warning | str, *place: Any, **more: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            _say_once(f"warning: {first_line(message)}")

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield


def _say_once(line: object) -> None:
    """The same, by the first of several processes."""
    if processes.rank() == 0:
        _say(line)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = _Parser(
        prog="pyro-bc", description="Bayesian compression of neural networks: a Pyro model in, a small file out."
    )
    top.add_argument("--version", action="version", version=f"pyro-bc {version('pyro-bc')}")
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    _add_run(commands.add_parser("run", usage=_USAGE, help="train, compress and measure, into a folder"))

    small = commands.add_parser("compress", help="compress a trained network without a fit, into a folder")
    small.add_argument("net", metavar="NET", help=f"{', '.join(NETWORKS)}; or {_OWN_NETWORK}")
    small.add_argument("--weights", metavar="FILE", help="its trained weights: .safetensors, or a saved state_dict")
    small.add_argument("--data", required=True, help=f"{_DATA}; targets are not needed")
    small.add_argument("--data-dir", help="folder with a data set's original files (default: $PYRO_BC_DATA)")
    small.add_argument("--out", required=True, help="folder for the results; must be new")
    small.add_argument("--epochs", type=int, default=0, help="train on for so many, rounded; needs targets")
    small.add_argument("--batch-size", type=int, default=128)
    small.add_argument(
        "--divergence", type=float, default=DIVERGENCE,
        help=f"by how much predictions may change without a training, in nats an input (default: {DIVERGENCE})",
    )  # fmt: skip
    small.add_argument("--nats-per-bit", type=float, help="price of a bit, instead of what the divergence allows")
    small.add_argument("--seed", type=int, default=0)
    small.add_argument("--json", action="store_true", help="print the metrics as JSON")

    check = commands.add_parser("evaluate", help="test error of a .pbc file")
    check.add_argument("file")
    check.add_argument("--data", required=True, help=_DATA)
    check.add_argument("--data-dir", help="folder with the original files (default: $PYRO_BC_DATA, or download)")
    check.add_argument("--development", action="store_true", help="measure on the held-out end of the training set")
    check.add_argument("--json", action="store_true")

    look = commands.add_parser("inspect", help="what is in a .pbc file")
    look.add_argument("file")
    look.add_argument("--json", action="store_true")

    other = commands.add_parser("export", help="a .pbc file as ONNX, in float32 and int8")
    other.add_argument("file")
    other.add_argument("--onnx", required=True, metavar="OUT", help="ONNX file to write")
    other.add_argument("--int8", metavar="OUT", help="ONNX file of the codes, with int8 activations; needs --data")
    other.add_argument("--packed", metavar="OUT", help="the int8 file in fewer bytes, for ONNX Runtime; needs --int8")
    other.add_argument("--data", help=f"to measure errors on: {_DATA}")
    other.add_argument("--data-dir", help="folder with the original files (default: $PYRO_BC_DATA, or download)")
    other.add_argument("--development", action="store_true", help="measure on the held-out end of the training set")
    other.add_argument("--json", action="store_true")

    for command in (small, check, other):
        command.add_argument("--likelihood", metavar="NAME", help=f"of the targets: {', '.join(LIKELIHOODS)}")
        command.add_argument("--target", metavar="COLUMN", help="column of a table with the targets")
    small.add_argument("--picture-size", type=int, metavar="PIXELS", help="bring a folder's pictures to this size")

    page = commands.add_parser("report", help="one HTML page with figures, pictures and diagnostics of a run")
    page.add_argument("dir", metavar="DIR", help="folder of a finished run")
    return top


#: headings of ``run --help`` for the options that the settings have, by their stage; the first is of what every user
#: needs, and takes the targets.
_HEADINGS = {
    "first": "what every run needs",
    "data": "data, device and what is shown",
    "dense": "dense network",
    "fit": "Bayesian training",
    "cut": "pruning and precision",
    "finetune": "training of what pruning left",
    "distil": "teacher",
}
_OF_RUN = {
    "max-error-rise": "first", "max-loss-rise": "first", "max-bytes": "first", "widths": "fit",
    "residual-width": "fit", "widths-from": "fit",
}  # fmt: skip
#: where nobody names a prior.
_PRIOR = "ghs"

_USAGE = "pyro-bc run --net NET --data DATA --out OUT [--max-error-rise POINTS] [other options]"


def _add_run(job: argparse.ArgumentParser) -> None:
    """The options of ``run``: what every user needs first, the rest under headings."""
    under = {key: job.add_argument_group(heading) for key, heading in _HEADINGS.items()}
    first, data, cut = under["first"], under["data"], under["cut"]
    first.add_argument("--net", required=True, help=f"{', '.join(NETWORKS)}; or {_OWN_NETWORK}")
    first.add_argument("--data", required=True, help=_DATA)
    first.add_argument("--prior", help=f"prior over the weights: {', '.join(PRIORS)} (default: {_PRIOR})")
    first.add_argument("--out", required=True, help="folder for the results; must be new, unless --resume")
    first.add_argument("--resume", action="store_true", help="continue the run in --out")
    first.add_argument("--seed", type=int, default=0)
    for stage, own in options_of(Settings("", "", "")):
        told = own.metadata
        under[stage or _OF_RUN.get(told["option"], "data")].add_argument(
            *(f"--{name}" for name in (told["option"], told["also"]) if name), type=told["type"],
            metavar=told["metavar"], help=told["help"],
        )  # fmt: skip
    data.add_argument("--data-dir", help="folder with the original files (default: $PYRO_BC_DATA, or download)")
    data.add_argument(
        "--development", action="store_true", help="hold out the end of the training set and measure there"
    )
    data.add_argument("--device", default="cpu", help="of torch, where the training is: cpu (default), cuda, …")
    data.add_argument("--log-dir", metavar="DIR", help="log for TensorBoard, one of each fit: tensorboard --logdir DIR")
    data.add_argument("--json", action="store_true", help="print the metrics as JSON")
    fit = under["fit"]
    fit.add_argument("--objective", choices=("elbo", "rate"), help="rate is another spelling of --prior learned")
    fit.add_argument("--batch-norm", default="fold", help="fold it before this training, or keep it in it")
    cut.add_argument(
        "--threshold", action="append", default=[], metavar="LAYER=VALUE",
        help="prune a layer at this value of its statistic instead of looking for one; may be repeated",
    )  # fmt: skip
    cut.add_argument("--precision", default="posterior", help=f"rule that sets the bits: {', '.join(RULES)}")


def _report(args: argparse.Namespace) -> None:
    _tell(write_report(args.dir))


def _run(args: argparse.Namespace) -> None:
    thresholds: dict[str, float] = {}
    for item in args.threshold:
        layer, _, value = item.rpartition("=")
        try:
            thresholds[layer] = float(value)
        except ValueError:
            raise UsageError(f"--threshold takes LAYER=VALUE with a number, not '{item}'") from None
    prior = args.prior or (LEARNED if args.objective == "rate" else _PRIOR)
    if args.objective == "rate" and prior != LEARNED:
        raise UsageError(f"--objective rate is the prior {LEARNED}; leave out --prior {prior}")
    names = [own.metadata["option"].replace("-", "_") for _, own in options_of(Settings("", "", ""))]
    names += ["batch_norm", "seed", "precision", "development"]
    given = {name: getattr(args, name) for name in names}
    settings = Settings.of(args.net, prior, args.data, **given, thresholds=thresholds or None)
    with processes.joined(args.device) as device:
        metrics = run(
            settings, args.out, args.data_dir, args.resume, progress=_has_terminal(), say=_say_once, device=device,
            log_dir=args.log_dir,
        )  # fmt: skip
    if metrics:
        _tell(json.dumps(metrics, indent=2) if args.json else markdown(metrics))


def _compress(args: argparse.Namespace) -> None:
    settings = CompressSettings(
        args.net, args.data, args.weights, args.epochs, args.batch_size, args.nats_per_bit, args.divergence, args.seed,
        args.likelihood, args.target, args.picture_size,
    )  # fmt: skip
    with processes.joined("cpu"):
        metrics = compress_trained(settings, args.out, args.data_dir, progress=_has_terminal(), say=_say_once)
    if metrics:
        _tell(json.dumps(metrics, indent=2) if args.json else markdown(metrics))


def _data_for(args: argparse.Namespace, stored: compressed.CompressedNetwork) -> Dataset:
    """The data that the arguments name, which must be of the network's shape and outputs."""
    target, categories = table_beside(Path(args.file))
    if Path(args.data).suffix not in TABLES:
        target = None
    likelihood = args.likelihood or (None if args.data in DATASETS else likelihood_beside(Path(args.file)))
    data = load_data(
        args.data, args.data_dir, likelihood=likelihood, target=args.target or target,
        input_shape=stored.input_shape, categories=categories,
    )  # fmt: skip
    if args.development:
        data = data.development()
    if stored.input_shape and stored.input_shape != data.picture_shape:
        raise UsageError(
            f"'{args.file}' takes inputs of shape {stored.input_shape}, but {data.name} has {data.picture_shape}"
        )
    if not data.has_targets:
        raise UsageError(f"'{args.data}' has no targets to measure errors by")
    data = in_its_classes(Path(args.file), data)
    with _of_file(args.file):
        return paired(stored.network(), data)


def _measured(args: argparse.Namespace, data: Dataset) -> Dataset:
    """Data whose test part is what an error is measured on: of data that were not trained on, all."""
    if args.development or not data.split_from:
        return data
    before = inputs_beside(Path(args.file)).get("split_from")
    if before == data.split_from:
        return data
    if before is None:
        return data.whole("all of these data; no metrics.json beside the file says whether some were trained on")
    return data.whole("all of these data, which are not those of the run")


def _which(data: Dataset) -> str:
    return f" ({data.test_part})" if data.is_own else ""


def _evaluate(args: argparse.Namespace) -> None:
    data_bytes = compressed.read_bytes(args.file)
    with _of_file(args.file):
        stored = compressed.CompressedNetwork.from_bytes(data_bytes)
    data = _measured(args, _data_for(args, stored))
    with _of_file(args.file):
        error, metric = test_error(stored.network(), data), data.likelihood.metric
    result: dict[str, Any] = {error_key(metric): error, "n": len(data.test_x), "file_bytes": len(data_bytes)}
    result["measured_on"] = data.test_part
    if args.json:
        _tell(json.dumps(result))
        return
    _tell(
        f"{in_words(metric, error)} of {len(data.test_x):,} examples{_which(data)}, file of {len(data_bytes):,} bytes"
    )


@contextmanager
def _of_file(path: str) -> Iterator[None]:
    """A context in which what goes wrong is a file's fault: its content, or what a network of a file's computes."""
    try:
        yield
    except CompressedFileError as error:
        raise CompressedFileError(f"'{path}': {error}") from None
    except UsageError as error:
        raise UsageError(f"'{path}': {error}") from None
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        raise CompressedFileError(f"'{path}' cannot be run on these data: {first_line(error)}") from error


def _inspect(args: argparse.Namespace) -> None:
    data = compressed.read_bytes(args.file)
    with _of_file(args.file):
        small, sections = compressed.read_sections(data)
    figures = small.compression(len(data))
    if args.json:
        description = {
            "input_shape": list(small.input_shape),
            "dense_architecture": [layer.dense_groups for layer in small.whole_layers],
            "architecture": list(small.architecture),
            "outputs": small.layers[-1].weight.codes.shape[0] if small.layers else None,
            "bits": list(small.bits),
            "bias_bits": [layer.bias_bits for layer in small.whole_layers],
            "file_bytes": len(data),
            "sections": {name: round(size, 1) for name, size in sections.items()},
            "dense_parameters": small.dense_parameters,
            "compression": {name: round(value, 3) for name, value in vars(figures).items()},
        }
        _tell(json.dumps(description))
        return
    _tell(f"{args.file}: {len(data):,} bytes, {small.dense_parameters:,} parameters before compression")
    for number, layer in enumerate(small.whole_layers, 1):
        out_left, in_left = layer.shape_left
        out_dense, in_dense = layer.dense_shape
        biases = "" if layer.bias_bits is None else f", biases of {layer.bias_bits}"
        parts = f", in {len(layer.parts)} parts" if len(layer.parts) > 1 else ""
        _tell(
            f"  layer {number}: {in_dense} → {out_dense} became {in_left} → {out_left}{parts}, "
            f"weights of {layer.bits} bits{biases}"
        )
    for name, size in sections.items():
        _tell(f"  {name:<20} {size:10,.1f} bytes")
    _tell(
        f"  pruning {figures.pruning:.1f}, fast prediction {figures.fast_prediction:.1f}, maximum {figures.maximum:.1f}"
    )


def _export(args: argparse.Namespace) -> None:
    if args.int8 and not args.data:
        raise UsageError("--int8 needs --data: its training pictures show what ranges the activations take")
    if args.packed and not args.int8:
        raise UsageError("--packed needs --int8: it is that file in fewer bytes")
    files = [path for path in (args.file, args.onnx, args.int8, args.packed) if path]
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise UsageError(f"{' and '.join(map(repr, files))} are one file, which would be replaced: name another")
    for path in filter(None, (args.onnx, args.int8, args.packed)):
        check_target(path)
    stored = compressed.read(args.file)
    if not stored.input_shape:
        raise UsageError(
            f"'{args.file}' does not say what shape its input has; use pyro_bc.onnx.to_onnx with that shape"
        )
    data = _measured(args, _data_for(args, stored)) if args.data else None
    net = stored.network()
    difference = to_onnx(net, args.onnx, stored.input_shape, stored.input_dtype)
    networks: dict[str, Any] = {"pytorch": net, "onnx": OnnxNetwork(args.onnx)}
    result: dict[str, Any] = {"difference": difference, "bytes": {"onnx": Path(args.onnx).stat().st_size}}
    if args.int8:
        assert data is not None
        kinds = to_int8(stored, args.int8, data.train_x[:512].split(64))
        result["float32"] = [name for name, kind in kinds.items() if kind == "float32"]
        networks["int8"] = OnnxNetwork(args.int8)
        result["bytes"]["int8"] = Path(args.int8).stat().st_size
    if args.packed:
        result["bytes"]["packed"] = pack(args.int8, args.packed)
    if data is not None:
        metric = data.likelihood.metric
        with _of_file(args.file):
            result[error_key(metric)] = {name: test_error(own, data) for name, own in networks.items()}
        result |= {"n": len(data.test_x), "measured_on": data.test_part}
    if args.json:
        _tell(json.dumps(result))
        return
    _tell(f"{args.onnx}: {result['bytes']['onnx']:,} bytes, outputs within {difference:.1e} of PyTorch's")
    if args.int8:
        _tell(f"{args.int8}: {result['bytes']['int8']:,} bytes")
        if result["float32"]:
            _tell(f"  multiplied in float32, since their codes do not fit int8: {', '.join(result['float32'])}")
    if args.packed:
        _tell(f"{args.packed}: {result['bytes']['packed']:,} bytes")
    if data is not None:
        for name, error in result[error_key(metric)].items():
            _tell(f"  {name:<8} {in_words(metric, error)} of {result['n']:,} examples{_which(data)}")


def _forget_output() -> None:
    """Lose what the standard output stream could not take, which Python would try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 after one line on what was wrong, 130 after Ctrl-C, 141 unread."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where an arrow cannot be written, it is spelled
    return processes.end(_code_of(parser().parse_args(argv)))


def _code_of(args: argparse.Namespace) -> int:
    """What the command exits with, behind one line where it fails."""
    commands = {
        "run": _run, "compress": _compress, "evaluate": _evaluate, "inspect": _inspect, "export": _export,
        "report": _report,
    }  # fmt: skip
    try:
        if args.command in ("run", "compress", "export"):
            check_temporary()
        with _warnings_as_lines():
            commands[args.command](args)
    except BrokenPipeError:  # whoever read it has seen enough
        _forget_output()
        return _CLOSED
    except PyroBCError as error:
        _forget_output()
        if not error.is_everywhere or processes.is_started_first():
            _say(f"pyro-bc: {error}")
        return 2
    except OSError as error:
        _forget_output()
        _say(f"pyro-bc: {error}")
        return 2
    except MemoryError:
        _say("pyro-bc: this takes more memory than there is")
        return 2
    except KeyboardInterrupt:
        hint = f"; continue with --resume --out {args.out}" if args.command == "run" else ""
        _say(f"pyro-bc: interrupted{hint}")
        return 130
    return 0
