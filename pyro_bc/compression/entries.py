"""Which single entries of what a graph computes can differ from 0, and which of them its output can depend on.

Units (:mod:`pyro_bc.graph.units`) say what can be cut out of an axis. A feature of one head among many can not, and yet
it is 0 where its filter is pruned, and nobody reads it where the layer behind reads none of its column. Here every
entry is followed by itself, through products of matrices and whatever moves entries, with one rule for most of them:
an operation that is linear in each of its arguments is computed on patterns of 0 and 1. Nothing cancels out of what is
never negative, so that a result is 0 only where it always is, and so is the derivative of what is read by an argument.

A pattern is boolean, of its tensor's number of dimensions, with 1 entry along an axis that it does not depend on; None
is one of which nothing is known. It is one of a batch of two.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..graph.constant_rules import Constant
from ..graph.nodes import Graph, Named, Node, Value, is_layer, leaves, of_input, replace_leaves
from ..graph.operations import operation
from ..graph.unit_rules import align, dimensions, factors_of, layer_axis, permutation
from ..runtime.shapes import on_axis

# Larger patterns are not looked at.
_MOST = 2**22

_BATCH = 2

Pattern = Tensor | None
Shape = tuple[int, ...]

_VIEWS = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
_TURNS = {"permute", "transpose", "t"}
_SUMS = {"add", "sub", "maximum", "minimum"}
_ONE_BY_ONE = {"select", "slice", "index_select", "flip"}
_WHOLE = {
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "roll", "repeat", "repeat_interleave.self_int", "tile",
    "unfold", "tril", "triu", "diagonal",
}  # fmt: skip
_PRODUCTS = {"matmul", "bmm", "mm", "einsum"}
_MIXING = {"softmax", "log_softmax", "_safe_softmax", "cumsum", "logsumexp"}
_KEEPING_ZERO = {"sum", "mean", "amax", "amin", "cumsum"}


class _Map:
    """What an operation does to patterns.

    :param reads: references to the arguments that it reads.
    :param compute: what it gives for their patterns, as numbers; only which are 0 matters.
    :param fills: whether its result can differ from 0 everywhere, whatever its arguments are.
    :param full: by argument, the axes along which it needs all entries.
    """

    def __init__(
        self,
        reads: Sequence[Any],
        compute: Callable[..., Tensor],
        fills: bool = False,
        full: Sequence[Sequence[int]] = (),
    ):
        self.reads, self.compute, self.fills = reads, compute, fills
        self.full = full or [()] * len(reads)


class Patterns:
    """The patterns of a graph's values.

    :param graph: its tensors are 0 where they are pruned.
    :param outputs: by the index of a layer's node, which of its outputs can differ from 0, ``(out,)``.
    :param constants: of every node, as :func:`~pyro_bc.graph.constants.propagate` gives them.
    """

    def __init__(self, graph: Graph, outputs: Mapping[int, Tensor], constants: Sequence[Constant]):
        self.graph, self.outputs, self.constants = graph, outputs, constants
        self.sizes: dict[int, int] = {}
        self.shapes: dict[int, Shape | None] = {}
        for index in range(-1 - len(graph.further_inputs), len(graph.nodes)):
            self.shapes[index] = self._shape_for_two(graph.shape(index))
        self.possible: dict[int, Pattern] = {}
        self.maps: dict[int, _Map] = {}
        self.varying = of_input(graph.nodes)  # what the others compute has no batch
        for index, node in enumerate(graph.nodes):
            self.possible[index] = self._forwards(index, node)

    def _shape_for_two(self, shape: tuple[Any, ...] | None) -> Shape | None:
        first = (self.graph.shapes[0] or ("",))[0]
        found = []
        for size in shape or ():
            factors = [size] if isinstance(size, int) else factors_of(size)
            known = [_BATCH if factor == first else factor for factor in factors]
            if any(isinstance(factor, str) and not factor.isdigit() for factor in known):
                return None
            found.append(math.prod(map(int, known)))
        return None if shape is None or math.prod(found) > _MOST else tuple(found)

    def _forwards(self, index: int, node: Node) -> Pattern:
        shape = self.shapes[index]
        self._count(index, node)
        if shape is None:
            return None
        if is_layer(node):
            axis = layer_axis(node, len(shape))
            return on_axis(self.outputs[index], axis, len(shape))
        found = self._map(index, node, shape)
        if found is not None and self.varying[index]:
            self.maps[index] = found
        pattern: Pattern = None
        if found is not None and not found.fills and any(self.pattern(read) is not None for read in found.reads):
            pattern = _compact(found.compute(*self._numbers_of(found)) != 0)
            pattern = pattern.reshape((1,) * (len(shape) - pattern.dim()) + tuple(pattern.shape))
        if node.op == "batch_norm" and pattern is None and found is not None:
            pattern = self._of_statistics(node, len(shape))
        known = self.constants[index]
        if known is not None:
            others = on_axis(torch.from_numpy(known[1] != 0), known[0], len(shape))
            pattern = others if pattern is None else pattern & others
        return pattern

    def _of_statistics(self, node: Node, ndim: int) -> Pattern:
        """Of a normalisation that neither moves 0 to its mean nor adds anything to it, what is 0 stays so."""
        x = self.pattern(node.args[0])
        added = [argument for argument in (node.args[2], node.args[3]) if isinstance(argument, Named)]
        if x is None or node.args[5] or not isinstance(node.args[3], Named):
            return None
        for one in added:
            x = x | on_axis(self.graph.tensors[one.name] != 0, 1, ndim)
        return x

    def _count(self, index: int, node: Node) -> None:
        """Whole numbers that nodes compute, for a batch of two."""
        if node.op == "size":
            shape = self.shapes.get(node.args[0].index)
            if shape is not None:
                self.sizes[index] = shape[node.args[1]]
        elif node.op.startswith("int_"):
            args = [self.sizes.get(a.index) if isinstance(a, Value) else a for a in node.args]
            if all(isinstance(a, int) for a in args):
                self.sizes[index] = int(operation(node.op).function(*args))

    def pattern(self, reference: Any) -> Pattern:
        """Which entries of a value, or of a named tensor, can differ from 0."""
        if isinstance(reference, Value):
            return self.possible.get(reference.index)
        tensor = self.graph.tensors[reference.name]
        if tensor.numel() > _MOST:
            return None
        return _compact(tensor != 0)

    def shape(self, reference: Any) -> Shape | None:
        if isinstance(reference, Value):
            return self.shapes.get(reference.index)
        return tuple(self.graph.tensors[reference.name].shape)

    def _numbers(self, reference: Any) -> Tensor:
        pattern, shape = self.pattern(reference), self.shape(reference)
        assert shape is not None
        return torch.ones([1] * len(shape)) if pattern is None else pattern.float()

    def _numbers_of(self, mapped: _Map) -> list[Tensor]:
        return [
            _full(self._numbers(read), self.shape(read) or (), full)
            for read, full in zip(mapped.reads, mapped.full, strict=True)
        ]

    def _map(self, index: int, node: Node, shape: Shape) -> _Map | None:
        """What a node does to patterns; None where its arguments' entries are not told apart."""
        reads = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Value | Named)]
        tensors = [read for read in reads if not (isinstance(read, Value) and read.index in self.sizes)]
        if not tensors or any(self.shape(read) is None for read in tensors) or tensors[0] not in _first(node):
            return None
        x, before = tensors[0], self.shape(tensors[0]) or ()
        if node.op in _VIEWS:
            return _Map([x], lambda a: _viewed(a, before, shape))
        if node.op in _TURNS:
            return _Map([x], lambda a: a.permute(permutation(node, len(before))))
        if node.op == "expand":
            return _Map([x], lambda a: a.reshape((1,) * (len(shape) - len(before)) + tuple(a.shape)))
        if node.op in _SUMS | {"mul", "div"}:
            return _binary(node, tensors)
        if operation(node.op).elementwise and len(tensors) == 1:
            keeps = bool(_of_zero(node) == 0)
            return _Map([x], lambda a: a, fills=not keeps)
        if node.op == "scaled_dot_product_attention":
            heads = {(self.shape(part) or ())[:-2] for part in node.args[:3]}
            last = [[len(before) - 1], [len(before) - 1], []]
            return _Map(node.args[:3], _attended, full=last) if len(heads) == 1 else None
        args = self._counted_args(node)
        if args is None:
            return None
        if node.op in _ONE_BY_ONE:
            dims = (args[1],) if isinstance(args[1], int) else args[1]
            dims = [dim % len(before) for dim in dims]
            rest = [self.graph.tensors[a.name] if isinstance(a, Named) else a for a in args[1:]]
            if any(isinstance(a, Value) for a in rest):
                return None
            rest = [list(a) if isinstance(a, tuple) else a for a in rest]
            own = operation(node.op).function
            return _Map([x], lambda a: own(a, *rest), full=[dims])
        if node.op in ("cat", "stack") and len(tensors) == len(args[0]):
            dim = (*args, 0)[1] % len(shape)
            full = [[dim] if node.op == "cat" else []] * len(tensors)
            return _Map(tensors, lambda *parts: _joined(parts, dim, node.op), full=full)
        if node.op in ("pad", "constant_pad_nd") and (*args, "constant")[2] in ("constant", 0) and not any(args[3:]):
            dims = [len(before) - 1 - at // 2 for at, amount in enumerate(args[1]) if amount]
            return _Map([x], lambda a: torch.nn.functional.pad(a, args[1]), full=[dims])
        if node.op in _WHOLE and len(tensors) == 1:
            rest = [list(a) if isinstance(a, tuple) else a for a in args[1:]]
            own = operation(node.op).function
            return _Map([x], lambda a: own(a, *rest), full=[range(len(before))])
        return self._of_sums(node, args, tensors, shape)

    def _of_sums(self, node: Node, args: tuple[Any, ...], tensors: list[Any], shape: Shape) -> _Map | None:
        """Of operations that add up entries along axes."""
        x, before = tensors[0], self.shape(tensors[0]) or ()
        row = operation(node.op)
        if node.op in _KEEPING_ZERO | _MIXING | {"var.correction", "std.correction"} and len(tensors) == 1:
            dims = [dim % len(before) for dim in dimensions(node)]
            if not dims:
                return None
            keeps = len(shape) == len(before)
            return _Map([x], lambda a: a.sum(dims, keepdim=keeps), fills=node.op not in _KEEPING_ZERO)
        if any(f"{number}d" in node.op for number in "123") and "pool" in node.op + "pool" * ("upsample" in node.op):
            count = next(int(number) for number in "123" if f"{number}d" in node.op)
            return _Map([x], lambda a: a.sum(list(range(len(before) - count, len(before))), keepdim=True))
        if node.op in ("layer_norm", "rms_norm"):
            count = len(args[1])
            return _normalised(x, list(range(len(before) - count, len(before))), args[2:3])
        if node.op == "batch_norm":
            return _normalised(x, [], args[1:2], axis=1)
        if node.op in ("instance_norm", "group_norm"):
            gain = args[1:2] if node.op == "instance_norm" else args[2:3]
            over = list(range(2 if node.op == "instance_norm" else 1, len(before)))
            return _normalised(x, over, gain, axis=1)
        shapes = [self.shape(tensor) or () for tensor in tensors]
        if node.op in _PRODUCTS and len(tensors) == 2 and not row.creates:
            return _product(node, tensors, shapes)
        if node.op == "linear" and len(tensors) == 2:
            return _Map(tensors, lambda a, w: a @ w.T, full=[[len(shapes[0]) - 1], [1]])
        return None

    def _as_fine(self, mapped: _Map, wanted: Pattern) -> list[Tensor]:
        """The arguments' patterns, with all entries along the axes on which what is wanted depends."""
        numbers = self._numbers_of(mapped)
        fine = [axis for axis, size in enumerate(() if wanted is None else wanted.shape) if size > 1]
        if not fine:
            return numbers
        shapes = [self.shape(read) or () for read in mapped.reads]
        ones = [
            _full(torch.ones([1] * len(shape)), shape, full) for shape, full in zip(shapes, mapped.full, strict=True)
        ]
        plain = mapped.compute(*ones).shape
        for at, shape in enumerate(shapes):
            for axis, size in enumerate(shape):
                if numbers[at].shape[axis] < size:
                    tried = [_full(part, shape, [axis]) if other == at else part for other, part in enumerate(ones)]
                    result = mapped.compute(*tried).shape
                    if any(result[other] > plain[other] for other in fine):
                        numbers[at] = _full(numbers[at], shape, [axis])
        return numbers

    def _counted_args(self, node: Node) -> tuple[Any, ...] | None:
        """Arguments with the whole numbers that earlier nodes computed; keywords have no rule."""
        if node.kwargs and any(key not in ("dtype", "dim", "keepdim", "correction") for key, _ in node.kwargs):
            return None
        args = replace_leaves(
            node.args, lambda leaf: self.sizes.get(leaf.index, leaf) if isinstance(leaf, Value) else leaf
        )
        return tuple(args)

    def channels(self, reference: Any, axis: int) -> Tensor | None:
        """Which entries along an axis can differ from 0, wherever they are on the others; None for all."""
        pattern = self.pattern(reference)
        if pattern is None or pattern.shape[axis] == 1:
            return None
        return pattern.movedim(axis, 0).flatten(1).any(1)

    @torch.enable_grad()
    def wanted(self, read_by: Callable[[Node, Tensor], Tensor]) -> dict[int, Tensor]:
        """Which outputs of every layer the network's output can depend on, ``(out,)``, by the index of its node.

        Nodes that it does not depend on are left out.

        :param read_by: which channels of its input a layer's node reads where these of its outputs are wanted.
        """
        last = len(self.graph.nodes) - 1
        wanted: dict[int, Pattern] = {last: None}
        found: dict[int, Tensor] = {}
        for index in reversed(range(len(self.graph.nodes))):
            if index not in wanted:
                continue
            node, own, shape = self.graph.nodes[index], wanted.pop(index), self.shapes[index]
            if is_layer(node):
                size = len(self.outputs[index])
                rows = torch.ones(size, dtype=torch.bool)
                if own is not None and shape is not None:
                    rows = own.movedim(layer_axis(node, len(shape)), 0).flatten(1).any(1).expand(size)
                found[index] = rows
                x = node.args[0]
                if isinstance(x, Value):
                    before = self.shapes.get(x.index)
                    columns = None
                    if before is not None and node.op != "lookup":
                        columns = on_axis(read_by(node, rows), layer_axis(node, len(before)), len(before))
                    _add(wanted, x.index, columns)
                continue
            mapped = self.maps.get(index)
            if mapped is None or shape is None:
                for read in {value for value in node.values() if value >= 0}:
                    _add(wanted, read, None)
                continue
            inputs = [part.detach().requires_grad_() for part in self._as_fine(mapped, own)]
            result = mapped.compute(*inputs)
            patterns = torch.autograd.grad(result, inputs, _fitted(own, result), allow_unused=True)
            for read, pattern in zip(mapped.reads, patterns, strict=True):
                if isinstance(read, Value) and read.index >= 0:
                    nothing = torch.zeros([1] * len(self.shape(read) or ()), dtype=torch.bool)
                    _add(wanted, read.index, nothing if pattern is None else _compact(pattern != 0))
            for other in {value for value in node.values() if value >= 0}:
                if Value(other) not in mapped.reads:
                    _add(wanted, other, None)
        return found


def _first(node: Node) -> tuple[Any, ...]:
    """The references that a node's first tensor may be: what its leading arguments are."""
    first = node.args[0]
    if node.op == "einsum":
        return tuple(node.args[1])
    return first if isinstance(first, tuple) else (first, *node.args[1:2])


def _compact(pattern: Tensor) -> Tensor:
    """The pattern with 1 entry along every axis that it does not depend on."""
    for axis in range(pattern.dim()):
        if pattern.shape[axis] > 1:
            first = pattern.narrow(axis, 0, 1)
            if bool((pattern == first).all()):
                pattern = first
    return pattern


def _full(pattern: Tensor, shape: Shape, dims: Sequence[int]) -> Tensor:
    """The pattern with all entries along these axes."""
    return pattern.expand([shape[axis] if axis in dims else size for axis, size in enumerate(pattern.shape)])


def _fitted(pattern: Pattern, result: Tensor) -> Tensor:
    """What is wanted, of the shape of a result that may be known along fewer axes."""
    if pattern is None:
        return torch.ones_like(result)
    for axis in range(result.dim()):
        if result.shape[axis] == 1 < pattern.shape[axis]:
            pattern = pattern.any(axis, keepdim=True)
    return pattern.expand(result.shape).float()


def _add(wanted: dict[int, Pattern], index: int, pattern: Pattern) -> None:
    if index < 0:
        return
    if index in wanted:
        known = wanted[index]
        pattern = None if known is None or pattern is None else known | pattern
    wanted[index] = pattern


def _viewed(pattern: Tensor, before: Shape, after: Shape) -> Tensor:
    """A view of the same entries, by the runs of axes that hold the same number."""
    old_sizes, new_sizes = list(pattern.shape), [1] * len(after)
    for old, new in align(before, after):
        if any(pattern.shape[axis] > 1 for axis in old):
            for axis in old:
                old_sizes[axis] = before[axis]
            for axis in new:
                new_sizes[axis] = after[axis]
    return pattern.expand(old_sizes).reshape(new_sizes)


def _of_zero(node: Node) -> Tensor:
    args = [
        torch.zeros(1) if isinstance(a, Value | Named) else list(a) if isinstance(a, tuple) else a for a in node.args
    ]
    if node.op in ("to", "contiguous", "clone"):
        return torch.zeros(1)
    try:
        result: Tensor = operation(node.op).function(*args, **dict(node.kwargs))
    except (TypeError, RuntimeError):
        return torch.ones(1)
    return result


def _binary(node: Node, tensors: list[Any]) -> _Map | None:
    """Sums, products and quotients, of two tensors or of one and a number."""
    if len(tensors) == 1:
        number = next((a for a in node.args[:2] if isinstance(a, int | float)), None)
        if number is None:
            return None
        divides = node.op == "div" and node.args[0] is number
        return _Map(tensors, lambda a: a, fills=divides or (node.op in _SUMS and number != 0))
    if node.op in _SUMS:
        return _Map(tensors, lambda a, b: a + b)
    if node.op == "mul":
        return _Map(tensors, lambda a, b: a * b)
    return _Map(tensors, lambda a, b: a * (1 + b))  # a divisor changes what is divided


def _joined(parts: Sequence[Tensor], dim: int, op: str) -> Tensor:
    ndim = parts[0].dim()
    most = [max(part.shape[axis] for part in parts) for axis in range(ndim)]
    parts = [
        part.expand([part.shape[axis] if op == "cat" and axis == dim else most[axis] for axis in range(ndim)])
        for part in parts
    ]
    return torch.cat(list(parts), dim) if op == "cat" else torch.stack(list(parts), dim)


def _normalised(x: Any, over: list[int], gain: Sequence[Any], axis: int = -1) -> _Map:
    """Of normalisations: everything that is counted matters to all that is read, but where a gain is 0."""
    scale = [one for one in gain if isinstance(one, Named)]

    def compute(a: Tensor, *gains: Tensor) -> Tensor:
        counted = a.sum(over, keepdim=True) if over else a
        for one in gains:
            counted = counted * (one if axis == -1 else one.reshape(-1, *[1] * (a.dim() - 1 - axis)))
        return counted

    return _Map([x, *scale], compute, fills=True)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of scaled dot products: scores are of all features that neither side lacks, and weigh whatever they are."""
    scores = (q.sum(-2, keepdim=True) * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return (1 + scores) * v.sum(-2, keepdim=True)


def _product(node: Node, tensors: list[Any], shapes: Sequence[Shape]) -> _Map | None:
    """Of products of matrices: along what they sum over, an entry matters where the other side's is not 0."""
    if node.op == "einsum":
        if any(not isinstance(part, Value | Named) for part in node.args[1]) or "." in node.args[0]:
            return None
        left, result = node.args[0].replace(" ", "").split("->")
        letters = left.split(",")
        summed = set("".join(letters)) - set(result)
        dims = [[at for at, letter in enumerate(own) if letter in summed] for own in letters]
        if any(len(set(own)) < len(own) for own in letters):
            return None
        return _Map(tensors, lambda a, b: torch.einsum(node.args[0], a, b), full=dims)
    if any(len(shape) < 2 for shape in shapes):
        return None
    return _Map(tensors, lambda a, b: a @ b, full=[[len(shapes[0]) - 1], [len(shapes[1]) - 2]])
