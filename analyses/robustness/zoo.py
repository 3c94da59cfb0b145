"""Networks that practitioners use, each read, stored, loaded and compared: those of torchvision, timm and transformers.

    pip install --no-deps --target .zoo "torchvision==0.28.*" timm transformers huggingface_hub tokenizers pyyaml \\
        regex httpx2 httpcore2 anyio idna truststore h11 hf-xet click
    PYTHONPATH=.zoo python analyses/robustness/zoo.py            # reads, stores and loads all of them
    PYTHONPATH=.zoo python analyses/robustness/zoo.py --whole    # check, a step of fit, half of all groups out, ONNX
    PYTHONPATH=.zoo python analyses/robustness/zoo.py --whole --held-out   # the same of networks that were held out
    PYTHONPATH=.zoo python analyses/robustness/zoo.py --whole --more 100   # what has no result, for 100 s
    PYTHONPATH=.zoo python analyses/robustness/zoo.py --only timm.   # those whose name holds this, anew

Random weights, small inputs, from configurations: nothing is downloaded. PyPI's torchvision is built against CUDA's
torch; its networks need none of its own operators, which are registered as stand-ins here. Every network has a process
of its own, so that one that takes too long is said and left. Writes ``zoo.json`` and ``zoo.md`` of
``analyses/results/``, and ``zoo_whole.json`` and ``zoo_whole.md`` of the whole line.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import odd_networks as odd
from common import RESULTS
from needed import needed, of_the_masked

import pyro_bc
from pyro_bc.compression.compress import _dense_shapes, inputs_as_stored
from pyro_bc.compression.pruned import masked_layer, with_weights
from pyro_bc.compression.pruning import shrink
from pyro_bc.compression.reading import read_posterior
from pyro_bc.file.compressed import CompressedNetwork
from pyro_bc.file.contents import Floats, integers_of
from pyro_bc.graph.attention import separate_heads
from pyro_bc.graph.interface import called
from pyro_bc.graph.module import GraphNetwork
from pyro_bc.graph.nodes import is_layer
from pyro_bc.graph.read import read_graph
from pyro_bc.posterior.in_place import network_with, pruned
from pyro_bc.posterior.thresholds import choose_threshold, removed_outputs
from pyro_bc.runtime.inputs import random_like, tensors_of, with_tensors

LIBRARIES: list[Any] = []

#: seconds that a network may take.
PATIENCE = 1500


def pictures(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size)


def tokens(length: int = 8) -> Tensor:
    return torch.randint(5, 100, (2, length))


def masked(length: int = 8) -> dict[str, Tensor]:
    """Tokens, the last of which are padding."""
    return {"input_ids": tokens(length), "attention_mask": (torch.arange(length) < length - 2).long().repeat(2, 1)}


def torchvision_net(name: str, size: int = 64, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import torchvision.models as models

        return getattr(models, name)(weights=None, **({"num_classes": 10} | options)), pictures(size)

    return make


def segmentation_net(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import torchvision.models.segmentation as models

        return getattr(models, name)(weights=None, weights_backbone=None, num_classes=5), pictures()

    return make


def timm_net(name: str, size: int = 64, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import timm

        try:
            return timm.create_model(name, num_classes=10, img_size=size, **options), pictures(size)
        except TypeError:
            return timm.create_model(name, num_classes=10, **options), pictures(size)

    return make


def transformer(name: str, config: str, inputs: Callable[[], Any] = tokens, **options: Any) -> Any:
    def make() -> tuple[nn.Module, Any]:
        import transformers

        transformers.logging.set_verbosity_error()
        return getattr(transformers, name)(getattr(transformers, config)(**options)), inputs()

    return make


class Tcn(nn.Module):
    """Causal convolutions whose padding is cut off again."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 1), (16, 2), (16, 4))
        self.layers = nn.ModuleList(nn.Conv1d(n, 16, 3, padding=2 * apart, dilation=apart) for n, apart in sizes)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)[:, :, : -2 * 2**i].relu()
        return self.head(x[:, :, -1])


class UNet(nn.Module):
    """Bilinear upsampling, reflected edges, a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(24, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(F.pad(x, (1, 1, 1, 1), mode="reflect")).relu()
        up = F.interpolate(self.b(h).relu(), size=h.shape[-2:], mode="bilinear", align_corners=False)
        return self.c(torch.cat([h, up], 1))


class ByHand(nn.Module):
    """A recurrent network as a loop over steps."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep, self.head = nn.Linear(4, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 16)
        for step in x.unbind(1):
            h = torch.tanh(self.read(step) + self.keep(h))
        return self.head(h)


class Einsum(nn.Module):
    """Attention in einsums, with a causal mask and a plain parameter as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Parameter(torch.randn(10, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)) for part in self.qkv(x).chunk(3, -1))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        weights = torch.where(mask, scores, float("-inf")).softmax(-1)
        return F.linear(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2), self.out).mean(1)


class Table(nn.Module):
    """Numbers and kinds of a table, which are two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.body = nn.Embedding(5, 3), nn.Sequential(nn.Linear(11, 16), nn.GELU(), nn.Linear(16, 2))

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        return self.body(torch.cat([numbers, self.kinds(kinds).flatten(1)], 1))


def normalised() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(6, 8)), nn.Softsign(), norm(nn.Linear(8, 3)))


def squeezing() -> nn.Module:
    from torchvision.ops import SqueezeExcitation

    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 3), SqueezeExcitation(8, 4), *head)


def super_resolution() -> nn.Module:
    layers = (nn.Conv2d(3, 12, 3, padding=1, padding_mode="replicate"), nn.PixelShuffle(2), nn.PixelUnshuffle(2))
    return nn.Sequential(*layers, nn.LocalResponseNorm(3), nn.Conv2d(12, 3, 1))


SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
TEXT = SMALL | {"vocab_size": 120}
GROUPED = TEXT | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
SOUND = TEXT | {
    "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2,
    "classifier_proj_size": 8, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def sounds() -> Tensor:
    return torch.randn(2, 800)


def small_pictures() -> Tensor:
    return pictures(32)


ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{f"torchvision.{name}": torchvision_net(name) for name in (
        "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "swin_t", "swin_v2_t",
        "densenet121", "shufflenet_v2_x0_5", "regnet_y_400mf", "mnasnet0_5", "squeezenet1_1", "alexnet",
    )},
    "torchvision.vgg11_bn": torchvision_net("vgg11_bn", 32),
    "torchvision.vit_b_16": torchvision_net("vit_b_16", 32, image_size=32),
    "torchvision.inception_v3": torchvision_net("inception_v3", 160, init_weights=False),
    "torchvision.googlenet": torchvision_net("googlenet", init_weights=False),
    "torchvision.maxvit_t": torchvision_net("maxvit_t", 224),
    **{f"torchvision.{name}": segmentation_net(name) for name in (
        "fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
    )},
    **{f"timm.{name}": timm_net(name) for name in (
        "regnetx_002", "mixer_s32_224", "coat_tiny", "mobilevit_xxs", "poolformer_s12", "xcit_nano_12_p16_224",
        "nfnet_l0", "resnetv2_50", "repvgg_a0", "mobileone_s0", "edgenext_xx_small", "ghostnet_100", "hrnet_w18_small",
        "davit_tiny", "pvt_v2_b0", "twins_pcpvt_small", "convmixer_768_32", "ese_vovnet19b_dw", "sequencer2d_s",
        "fastvit_t8", "volo_d1_224", "nest_tiny", "visformer_tiny", "dla34", "resnest14d", "gcresnet33ts",
        "ecaresnet26t", "caformer_s18", "efficientvit_b0", "res2net50_14w_8s", "mobilenetv4_conv_small",
        "convnextv2_atto", "lcnet_050", "tinynet_e", "rexnet_100", "cspresnet50",
    )},
    # Of smaller pictures the last kernels of these, and of inception_v3, meet little but padding.
    **{f"timm.{name}": timm_net(name, 128) for name in ("skresnet18", "selecsls42b")},
    **{f"timm.{name}": timm_net(name, 32) for name in (
        "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "resmlp_12_224", "gmlp_s16_224", "cait_xxs24_224",
        "tnt_s_patch16_224", "convit_tiny",
    )},
    "timm.beit_base_patch16_224": timm_net("beit_base_patch16_224", 32, depth=2),
    "timm.eva02_tiny_patch14_224": timm_net("eva02_tiny_patch14_224", 56),
    "timm.levit_128s": timm_net("levit_128s", 224),
    "timm.swin_tiny_patch4_window7_224": timm_net("swin_tiny_patch4_window7_224", 224, depths=(1, 1, 1, 1)),
    "timm.crossvit_tiny_240": timm_net("crossvit_tiny_240", 240),
    "timm.inception_resnet_v2": timm_net("inception_resnet_v2", 96),
    **{f"timm.{name}": timm_net(name, 256) for name in ("halonet26t", "botnet26t_256", "lambda_resnet26t")},
    "timm.efficientformer_l1": timm_net("efficientformer_l1", 224),
    **{f"transformers.{name}": transformer(f"{name}ForSequenceClassification", f"{name}Config", masked, **TEXT)
       for name in ("Bert", "Roberta", "MPNet")},
    **{f"transformers.{name}": transformer(f"{name}ForSequenceClassification", f"{name}Config",
                                           embedding_size=16, **TEXT)
       for name in ("Albert", "Electra")},
    "transformers.DistilBert": transformer("DistilBertForSequenceClassification", "DistilBertConfig", masked, dim=32,
                                           n_heads=4, n_layers=2, hidden_dim=64, vocab_size=120),
    "transformers.DebertaV2": transformer("DebertaV2ForSequenceClassification", "DebertaV2Config",
                                          relative_attention=True, pos_att_type=["c2p", "p2c"],
                                          max_position_embeddings=16, **TEXT),
    "transformers.MobileBert": transformer("MobileBertForSequenceClassification", "MobileBertConfig", embedding_size=16,
                                           intra_bottleneck_size=16, **TEXT),
    "transformers.GPT2": transformer("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_head=4, n_layer=2, vocab_size=120,
                                     n_positions=32, bos_token_id=1, eos_token_id=2),
    **{f"transformers.{name}": transformer(f"{name}ForCausalLM", f"{name}Config", **GROUPED)
       for name in ("Llama", "Qwen2", "Mistral")},
    "transformers.Llama with a mask": transformer("LlamaForCausalLM", "LlamaConfig", masked, **GROUPED),
    "transformers.Gemma": transformer("GemmaForCausalLM", "GemmaConfig", head_dim=8, **GROUPED),
    "transformers.OPT": transformer("OPTForCausalLM", "OPTConfig", hidden_size=32, num_attention_heads=4, ffn_dim=64,
                                    num_hidden_layers=2, vocab_size=120, word_embed_proj_dim=32),
    **{f"transformers.{name}": transformer(f"{name}ForCausalLM", f"{name}Config", **TEXT)
       for name in ("GPTNeoX", "Phi")},
    "transformers.Bloom": transformer("BloomForCausalLM", "BloomConfig", hidden_size=32, n_head=4, n_layer=2,
                                      vocab_size=120),
    "transformers.Falcon": transformer("FalconForCausalLM", "FalconConfig", hidden_size=32, num_attention_heads=4,
                                       num_hidden_layers=2, vocab_size=120),
    "transformers.Mamba": transformer("MambaForCausalLM", "MambaConfig", hidden_size=16, num_hidden_layers=2,
                                      vocab_size=120, state_size=4),
    **{f"transformers.{name}": transformer(f"{name}ForImageClassification", f"{name}Config", small_pictures, **VISION)
       for name in ("ViT", "DeiT", "Dinov2")},
    "transformers.Beit": transformer("BeitForImageClassification", "BeitConfig", small_pictures,
                                     use_relative_position_bias=True, **VISION),
    "transformers.Swin": transformer("SwinForImageClassification", "SwinConfig", pictures, image_size=64, patch_size=4,
                                     embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4),
    "transformers.ConvNext": transformer("ConvNextForImageClassification", "ConvNextConfig", pictures, **STAGES),
    "transformers.ResNet": transformer("ResNetForImageClassification", "ResNetConfig", pictures, embedding_size=16,
                                       **STAGES),
    "transformers.Segformer": transformer("SegformerForSemanticSegmentation", "SegformerConfig", pictures,
                                          num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, **STAGES),
    "transformers.MobileViT": transformer("MobileViTForImageClassification", "MobileViTConfig", pictures,
                                          image_size=64),
    **{f"transformers.{name}": transformer(f"{name}ForSequenceClassification", f"{name}Config", sounds, **SOUND)
       for name in ("Wav2Vec2", "Hubert")},
    "transformers.PatchTST": transformer(
        "PatchTSTForClassification", "PatchTSTConfig", lambda: torch.randn(2, 32, 3), num_input_channels=3,
        context_length=32, patch_length=8, patch_stride=8, d_model=32, num_attention_heads=4, num_hidden_layers=2,
        ffn_dim=128, num_targets=5,
    ),
    "own.tcn": lambda: (Tcn(), torch.randn(2, 3, 20)),
    "own.u-net": lambda: (UNet(), pictures(16)),
    "own.recurrence by hand": lambda: (ByHand(), torch.randn(2, 6, 4)),
    "own.einsum attention": lambda: (Einsum(), torch.randn(2, 6, 16)),
    "own.table of two inputs": lambda: (Table(), (torch.randn(2, 5), torch.randint(0, 5, (2, 2)))),
    "own.weight_norm": lambda: (normalised(), torch.randn(2, 6)),
    "own.squeeze and excite": lambda: (squeezing(), pictures(12)),
    "own.super-resolution": lambda: (super_resolution(), pictures(8)),
    "own.lstm": lambda: (OfLstm(), torch.randn(2, 6, 4)),
}  # fmt: skip


HELD_OUT: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "held out.torchvision.resnext50_32x4d": torchvision_net("resnext50_32x4d"),
    "held out.torchvision.shufflenet_v2_x1_5": torchvision_net("shufflenet_v2_x1_5"),
    **{f"held out.timm.{name}": timm_net(name) for name in (
        "hardcorenas_a", "inception_next_tiny", "mobilenetv1_100", "semnasnet_075", "starnet_s1", "vovnet39a",
    )},
    "held out.timm.vit_xsmall_patch16_clip_224": timm_net("vit_xsmall_patch16_clip_224", 32),
    "held out.timm.pit_ti_224": timm_net("pit_ti_224", 224),
    "held out.transformers.Ernie": transformer("ErnieForSequenceClassification", "ErnieConfig", masked, **TEXT),
    "held out.transformers.Olmo2": transformer("Olmo2ForCausalLM", "Olmo2Config", **GROUPED),
    "held out.transformers.StableLm": transformer("StableLmForCausalLM", "StableLmConfig", **GROUPED),
    "held out.transformers.T5 encoder": transformer("T5EncoderModel", "T5Config", d_model=32, d_kv=8, d_ff=128,
                                                    num_layers=2, num_heads=4, vocab_size=120),
    "held out.transformers.Bit": transformer("BitForImageClassification", "BitConfig", pictures, embedding_size=16,
                                             hidden_sizes=[16, 32], depths=[1, 1], num_groups=4),
    "held out.transformers.FocalNet": transformer("FocalNetForImageClassification", "FocalNetConfig", pictures,
                                                  image_size=64, embed_dim=16, depths=[1, 1], hidden_sizes=[16, 32],
                                                  focal_levels=[2, 2], focal_windows=[3, 3]),
    "held out.own.named inputs, a dataclass": lambda: (odd.NamedInputs(), odd.NamedInputs.example()),
    "held out.own.old weight_norm": lambda: (odd.old_weight_norm(), torch.randn(2, 3, 20)),
    "held out.own.one module twice": lambda: (odd.Twice(), torch.randn(2, 12)),
    "held out.own.cross attention in einsums": lambda: (odd.CrossAttention(), (torch.randn(2, 6, 16),
                                                                             torch.randn(2, 9, 12))),
    "held out.own.decoder of transposed convolutions": lambda: (odd.decoder(), torch.randn(2, 6)),
    "held out.own.GRU with attention": lambda: (odd.Attending(), torch.randint(0, 50, (2, 7))),
    "held out.own.gated TCN": lambda: (odd.GatedTcn(), torch.randn(2, 4, 24)),
    "held out.own.3d convolutions": lambda: (odd.volumes(), torch.randn(2, 1, 8, 8, 8)),
    "held out.own.bags of a table": lambda: (odd.Bags(), (torch.randint(0, 30, (2, 5)), torch.randn(2, 4))),
    "held out.own.parameters in F.linear": lambda: (odd.Parameters(), torch.randn(2, 10)),
}  # fmt: skip


class OfLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def stand_in_for_torchvision() -> None:
    """Names of torchvision's operators, which its Python part registers rules for when it is imported."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    text = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    names = set(re.findall(r'register_meta\("(\w+)"\)|register_fake\("torchvision::(\w+)"\)', text))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in {one or other for one, other in names}:
        library.define(f"{name}() -> Tensor")
    LIBRARIES.append(library)  # which is gone with its last reference


def read_and_stored(net: nn.Module, x: Any) -> dict[str, Any]:
    """Read, written as it is, and loaded: the largest difference, as a part of the largest output."""
    net = separate_heads(net.eval())
    start = time.perf_counter()
    graph = read_graph(net, x)
    read = time.perf_counter()
    tensors = {
        name: Floats(tensor.float()) if tensor.is_floating_point() else integers_of(name, tensor)
        for name, tensor in graph.tensors.items()
    }
    used = dict.fromkeys(name for node in graph.nodes for name in node.named())
    parameters = sum(p.numel() for p in net.parameters())
    first, *further = inputs_as_stored(net, x)
    tensors = {name: tensors[name] for name in used}
    small = CompressedNetwork(
        graph.nodes, tensors, _dense_shapes(graph), parameters, first.shape, graph.buffers,
        input_dtype=first.dtype, input_name=first.name, further_inputs=tuple(further), thresholds={},
    )  # fmt: skip
    data = small.to_bytes()
    written = time.perf_counter()
    again = CompressedNetwork.from_bytes(data).network()
    loaded = time.perf_counter()
    other = random_like(x, 3)
    with torch.no_grad():
        expected, found = called(net, other), again(*tensors_of(other))
    return {
        "difference": float((found - expected).abs().max()) / max(1.0, float(expected.abs().max())),
        "parameters": parameters,
        "nodes": len(graph.nodes),
        "layers": sum(map(is_layer, graph.nodes)),
        "read_seconds": round(read - start, 1),
        "write_seconds": round(written - read, 1),
        "load_seconds": round(loaded - written, 1),
    }


def realistic_(net: nn.Module, x: Any) -> None:
    """Statistics of normalisation as a training leaves them, those of a batch; no gain or matrix is left near 0."""
    net.eval()  # some have further outputs while they train
    for parameter in net.parameters():
        if parameter.dim() > 1 and float(parameter.abs().max()) < 1e-3:
            nn.init.normal_(parameter, 0.0, 0.02)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for module in norms:
        if module.affine:
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0.0, 0.3)
        module.reset_running_stats()
        module.momentum, module.training = None, True
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            called(net, random_like(x, 8))
    net.eval()


def forced_out_(guide: Any, generator: torch.Generator) -> dict[str, float]:
    """Leave half of the groups of every layer, at random; thresholds by layer."""
    thresholds = {}
    with torch.no_grad():
        for name, layer in pyro_bc.summarize(guide).items():
            if layer.statistic is None:
                continue
            log_variance = guide.parameters_of(f"{name}.scale")[1]
            count = log_variance.numel()
            out = torch.randperm(count, generator=generator) >= (count + 1) // 2
            log_variance.fill_(-10.0)
            log_variance.view(-1)[out] = 20.0
            thresholds[name.removeprefix("net.")] = 2.0
    return thresholds


def best_possible(model: Any, guide: Any, small: CompressedNetwork, read: Any, thresholds: Any, x: Any) -> Any:
    """What is left, against the parameters that the masked network needs; the pruned graph against that network.

    The difference is of the largest output, before any rounding.
    """
    layers = pyro_bc.summarize(guide)
    changed = {
        name: pruned(layer, choose_threshold(layer, thresholds.get(name.removeprefix("net."))))
        for name, layer in layers.items()
    }
    net = network_with(model, layers, changed).double()
    masks, dead = {}, {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, own in changed.items():
        path = name.removeprefix("net.")
        weight, turned = modules[name].in_network.get("weight", (f"{path}.weight", False))
        bias, _ = modules[name].in_network.get("bias", (f"{path}.bias", False))
        masks[weight] = own.mask.T if turned else own.mask
        off = removed_outputs(layers[name], own.mask)
        if layers[name].layer_type.scales_outputs and layers[name].statistic is not None:
            dead[weight] = off
        if own.bias is not None:
            masks[bias] = ~off
    x = with_tensors(x, [part.double() if part.is_floating_point() else part for part in tensors_of(x)])
    torch.set_default_dtype(torch.float64)  # for what a forward makes anew
    try:
        run = of_the_masked(net, dead, x, called)
        with torch.no_grad():
            expected = run(x)
        count = sum(needed(net, masks, run, x).values())
    finally:
        torch.set_default_dtype(torch.float32)
    cuts = {name: choose_threshold(layer, thresholds.get(name)) for name, layer in read.posterior.items()}
    loose = {
        name: masked_layer(read.graph, name, f"{name}.bias" in read.graph.tensors, read.posterior, cuts)
        for name in read.loose
    }
    graph = shrink(with_weights(read.graph, loose), read.posterior, cuts).graph
    network = GraphNetwork(graph.nodes, graph.tensors, graph.buffers)
    with torch.no_grad():
        found = network(*(part.float() if part.is_floating_point() else part for part in tensors_of(x)))
    left = sum(own.numel() for name, own in small.network().named_parameters())
    return left, count, relative(found, expected)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest output."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    return float(((found - expected).abs() * ~same).nan_to_num(0.0).max() / expected[expected.isfinite()].abs().max())


class Loader:
    """A process that never saw the networks: it loads files, and compares what they compute."""

    CODE = """
import json, sys, time
import torch, pyro_bc
for line in sys.stdin:
    try:
        file, batch = json.loads(line)
        x, y = torch.load(batch)
        start = time.process_time()
        net = pyro_bc.load(file)
        took = time.process_time() - start
        with torch.no_grad():
            found = net(*x)
        same = (found == y) | (found.isnan() & y.isnan())
        apart = float(((found - y).abs() * ~same).nan_to_num(0.0).max())
        print(json.dumps({"difference": apart, "seconds": took}), flush=True)
    except Exception as error:
        print(json.dumps({"failed": " ".join(str(error).split())[:200]}), flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, file: str, batch: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([file, batch]), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def in_int8(small: pyro_bc.CompressedNetwork, path: Path, x: Any, tensors: Any, expected: Tensor) -> Any:
    """How far int8 in ONNX Runtime is from floats, as a part of the largest output, calibrated on other inputs."""
    try:
        pyro_bc.onnx.to_int8(small, path, [x, random_like(x, 8)])
        found = pyro_bc.onnx.OnnxNetwork(path, threads=1)(*tensors)
    except Exception as error:  # whatever a runtime says belongs into the table
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return relative(found, expected)


def through_the_line(net: nn.Module, x: Any, loader: Loader) -> dict[str, Any]:
    """Checked, fitted for a step, half of all groups forced out, stored, loaded in a new process, and in ONNX."""
    seconds, last = {}, time.process_time()

    def lap(stage: str) -> None:
        nonlocal last
        seconds[stage], last = round(time.process_time() - last, 1), time.process_time()

    realistic_(net, x)
    with torch.no_grad():
        y = called(net.eval(), x)
    likelihood = pyro_bc.likelihoods.Normal() if y.dim() != 2 else None
    y = y if likelihood is not None else y.argmax(-1)
    prior = pyro_bc.GroupNormalJeffreys()
    last = time.process_time()
    found = pyro_bc.check(net, x, y, prior, likelihood=likelihood)
    lap("check")
    if not found.ok:
        return {"refused": " ".join(found.problems)}
    model = pyro_bc.BayesianNetwork(net, prior, num_data=len(y), likelihood=likelihood)
    guide = pyro_bc.FactorizedGuide(model)
    pyro_bc.fit(model, guide, [(x, y)], epochs=1, progress=False)
    lap("fit")
    thresholds = forced_out_(guide, torch.Generator().manual_seed(0))
    read = read_posterior(model, guide)
    thresholds = {name: value for name, value in thresholds.items() if name in read.posterior}
    lap("read")
    small = pyro_bc.compress(model, read, thresholds=thresholds)
    lap("compress")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.pbc"
        size = small.save(file)
        lap("save")
        tensors = tensors_of(random_like(x, 3))
        with torch.no_grad():
            expected = small.network()(*tensors)
        torch.save((tensors, expected), Path(folder) / "batch.pt")
        lap("run")
        loaded = loader.ask(str(file), str(Path(folder) / "batch.pt"))
        if "failed" in loaded:
            return {"failed": f"load: {loaded['failed']}"}
        difference, took = loaded["difference"], loaded["seconds"]
        last, seconds["load"] = time.process_time(), round(took, 1)
        largest = float(expected[expected.isfinite()].abs().max())
        try:
            onnx: Any = pyro_bc.onnx.to_onnx(small, Path(folder) / "net.onnx") / largest
        except pyro_bc.errors.ExportError as error:
            onnx = " ".join(str(error).split())[:200]
        lap("onnx")
        int8 = in_int8(small, Path(folder) / "int8.onnx", x, tensors, expected)
        lap("int8")
    left, least, pruned_difference = best_possible(model, guide, small, read, thresholds, x)
    lap("measure")
    return {
        "difference": difference / largest,
        "onnx": onnx,
        "int8": int8,
        "pruned": pruned_difference,
        "parameters": small.dense_parameters,
        "needed": least,
        "left": left,
        "ratio": round(least / left, 3),
        "bytes": size,
        "seconds": seconds,
    }


def one(name: str, loader: Loader | None) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        net, x = (ZOO | HELD_OUT)[name]()
        return read_and_stored(net, x) if loader is None else through_the_line(net, x, loader)
    except pyro_bc.errors.PyroBCError as error:
        return {"refused": " ".join(str(error).split())[:200]}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def alone(name: str, loader: Loader | None) -> dict[str, Any]:
    """:func:`one` in a process of its own, forked from this one, which has loaded the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        child = os.fork()
        if not child:
            try:
                signal.alarm(PATIENCE)
                file.write_text(json.dumps(one(name, loader)))
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        if file.exists() and file.read_text():
            result: dict[str, Any] = json.loads(file.read_text())
            return result
        signal_number = os.WTERMSIG(status)
        return {"failed": f"more than {PATIENCE} s" if signal_number == signal.SIGALRM else f"signal {signal_number}"}


def table(results: dict[str, dict[str, Any]]) -> str:
    good = [r for r in results.values() if r.get("difference", 1.0) < 1e-5]
    columns = ("parameters", "nodes", "layers", "read_seconds", "write_seconds", "load_seconds")
    head = ["network", "difference", *(column.replace("_seconds", " s") for column in columns)]
    lines = [
        "# The zoo",
        "",
        f"`python analyses/robustness/zoo.py`: {len(results)} networks of torchvision, timm, transformers and our own, "
        f"with random weights and small inputs. {len(good)} compute the same behind the file, on a batch of another "
        f"size, with a largest difference below 1e-5 of the largest output.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for name, result in results.items():
        if "difference" not in result:
            lines.append(f"| {name} | {result.get('refused') or result.get('failed')} |{' |' * len(columns)}")
            continue
        cells = [f"{result[c]:,}" if isinstance(result[c], int) else str(result[c]) for c in columns]
        lines.append(f"| {name} | {result['difference']:.1e} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


STAGES_OF_LINE = ("check", "fit", "read", "compress", "save", "load", "onnx", "int8")


def table_of_lines(results: dict[str, dict[str, Any]]) -> str:
    """The same of networks that went through the whole line."""

    def counted(held_out: bool) -> str:
        own = [r for name, r in results.items() if (name in HELD_OUT) == held_out]
        went = [r for r in own if "difference" in r]
        same = [r for r in went if r["difference"] < 1e-5 and r["pruned"] < 1e-5]
        small = [r for r in same if r["ratio"] >= 0.9]
        onnx = [r for r in went if not isinstance(r["onnx"], str) and r["onnx"] < 1e-5]
        int8 = [r for r in went if not isinstance(r["int8"], str)]
        everything = [r for r in small if r in onnx and r in int8]
        refused, failed = (sum(word in r for r in own) for word in ("refused", "failed"))
        return (
            f"of {len(own)} tried, {len(went)} went through, {refused} were refused by `check`, and {failed} failed; "
            f"{len(same)} compute the same in the pruned graph and behind the file, {len(onnx)} in ONNX Runtime, "
            f"{len(int8)} run in int8 there, {len(small)} shrink to at least 0.9 of the best that is possible; "
            f"{len(everything)} do all of it"
        )

    head = ["network", "parameters", "needed", "left", "needed / left", "pruned", "file", "ONNX", "int8", "bytes",
            *(f"{stage} s" for stage in STAGES_OF_LINE)]  # fmt: skip
    lines = [
        "# The zoo through the whole line",
        "",
        "`python analyses/robustness/zoo.py --whole`, and `--whole --held-out`: networks, each checked, fitted for a "
        "step, half of the groups of every layer forced out at random, compressed, stored, loaded in a new process, "
        "and written as ONNX. Random weights, small inputs, batch normalisation with the statistics of a batch.",
        "",
        f"The zoo, {len(ZOO)} networks: {counted(held_out=False)}. Held out, {len(HELD_OUT)} networks that nobody had "
        f"tried, after faults that they showed were mended: {counted(held_out=True)}. The same: to 1e-5 of the largest "
        "output.",
        "",
        "Needed: parameters that are not pruned and on which an output of the masked network depends, by its gradients "
        "in double precision, by torch alone (`needed.py`). Left: parameters that are stored. Pruned: how far the "
        "pruned network is from the masked one, before any rounding; file: from the network that was stored, in "
        "another process, on another batch; ONNX: ONNX Runtime from PyTorch; int8: products in int8 there, of the "
        "file's codes, with activations calibrated on other inputs; all as a part of the largest output. What int8 "
        "costs a trained network is in `export.md`: activations of random ones can differ in size by a thousand within "
        "a tensor, and then less is left of the small ones than of any trained network's. "
        "Needed is more than left where normalisations and constants were folded into other numbers. "
        "Seconds are of one core's time.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for name, result in results.items():
        if "difference" not in result:
            said = f"refused: {result['refused']}" if "refused" in result else result["failed"]
            lines.append(f"| {name} | {said} |{' |' * (len(head) - 2)}")
            continue
        onnx, int8 = (own if isinstance(own, str) else f"{own:.0e}" for own in (result["onnx"], result["int8"]))
        cells = [
            *(f"{result[key]:,}" for key in ("parameters", "needed", "left")), f"{result['ratio']:.2f}",
            f"{result['pruned']:.0e}", f"{result['difference']:.0e}", onnx, int8, f"{result['bytes']:,}",
            *(str(result["seconds"][stage]) for stage in STAGES_OF_LINE),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interleaved(names: Iterable[str]) -> list[str]:
    """Names with the libraries by turns, so that a part of them has something of each."""
    of_library: dict[str, list[str]] = {}
    for name in names:
        of_library.setdefault(name.partition(".")[0], []).append(name)
    places = {name: (at + 0.5) / len(own) for own in of_library.values() for at, name in enumerate(own)}
    return sorted(places, key=lambda name: places[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--held-out", action="store_true", help="networks that were not tried while it was made")
    parser.add_argument("--more", type=float, metavar="SECONDS", help="only what has no result, for so long")
    args = parser.parse_args()
    file = RESULTS / ("zoo_whole.json" if args.whole else "zoo.json")
    results: dict[str, dict[str, Any]] = (
        json.loads(file.read_text()) if (args.only or args.more) and file.exists() else {}
    )
    stand_in_for_torchvision()
    torch.set_num_threads(1)  # with more, a process that is forked waits for ever
    loader, start = Loader() if args.whole else None, time.monotonic()
    networks = HELD_OUT if args.held_out else ZOO
    for name in [name for name in interleaved(networks) if args.only in name]:
        if args.more and (name in results or time.monotonic() - start > args.more):
            continue
        results[name] = alone(name, loader)
        print(name, results[name], flush=True)
        results = {own: results[own] for own in ZOO | HELD_OUT if own in results}
        file.write_text(json.dumps(results, indent=1) + "\n")
        file.with_suffix(".md").write_text(table_of_lines(results) if args.whole else table(results))


if __name__ == "__main__":
    main()
