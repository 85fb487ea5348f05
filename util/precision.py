"""Half precision: which layers compute in it, and what keeps small gradients from vanishing."""

from contextlib import nullcontext

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """fp32, bf16 or fp16 arithmetic on one device. Weights, their updates and the loss are float32 in all of them.

        with precision.autocast():
            _, loss, _ = net(image, label)
        precision.backward(loss)
        precision.step(optimizer)

    fp16 numbers vanish below 6e-8, so its loss is scaled up for the backward pass, by a factor that adapts itself: a step
    whose gradients overflow is left out and halves it (Micikevicius et al., Mixed Precision Training, ICLR 2018).
    """

    def __init__(self, name, device):
        if name not in DTYPES:
            raise ValueError(f"precision: {name!r} is unknown; choose one of {', '.join(DTYPES)}")
        self.dtype, self.device = DTYPES[name], torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=name == "fp16")

    def autocast(self):
        """The context of the forward pass: convolutions and matrix products in half precision."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer) -> None:
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        """What a run needs to go on exactly; empty but for fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state) -> None:
        """Go on with `state`; a run that changes to fp16 has none and starts its factor anew."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
