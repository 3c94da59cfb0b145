"""What differentiates is called where torch allows it."""

import torch

from ..errors import UsageError


def check_differentiates(what: str) -> None:
    """Whether gradients can be had; ``torch.enable_grad()`` gives them under ``torch.no_grad()``.

    :param what: that needs them.
    :raises UsageError: under ``torch.inference_mode()``, whose tensors have none.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError(f"{what} needs gradients: call it outside of torch.inference_mode()")
