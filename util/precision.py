"""Half precision: which layers compute in it, and what keeps small gradients from vanishing."""

import re
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from util import distributed

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def native_precision(device) -> str:
    """`bf16` where the device has instructions for it, so that it is faster than fp32 and not emulated; else `fp32`.

    GPUs have them from compute capability 8 on. Of CPUs, torch says that it supports bf16 where it only emulates it, so Linux
    is asked: AVX512-BF16, AMX-BF16 or Arm's BF16. Other systems do not say, and get fp32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    cpu = ""
    with suppress(OSError):
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)", cpu, re.MULTILINE)
    native = flags and {"avx512_bf16", "amx_bf16", "bf16"} & {*flags[1].split()}
    return "bf16" if native and torch.backends.mkldnn.is_available() else "fp32"


def shared_precision(name, device) -> "Precision":
    """The same Precision in every process: `auto` is bf16 only if all of them compute it natively."""
    native = distributed.gather([native_precision(device)])
    return Precision(name, device, native="fp32" if "fp32" in native else "bf16")


class Precision:
    """fp32, bf16, fp16 or `auto` arithmetic on one device. Weights, their updates and the loss are float32 in all of them.

        with precision.autocast():
            _, loss, _ = net(image, label)
        precision.backward(loss)
        precision.step(optimizer)

    fp16 numbers vanish below 6e-8, so its loss is scaled up for the backward pass, by a factor that adapts itself: a step
    whose gradients overflow is left out and halves it (Micikevicius et al., Mixed Precision Training, ICLR 2018).
    """

    def __init__(self, name, device, native=None):
        """native: what `auto` means; None: what the device computes natively."""
        if name not in (*DTYPES, "auto"):
            raise ValueError(f"precision: {name!r} is unknown; choose one of {', '.join(DTYPES)}, auto")
        self.name = (native or native_precision(device)) if name == "auto" else name
        self.label = self.name if name != "auto" else f"{self.name} (auto)"  # for log and protocol
        self.dtype, self.device = DTYPES[self.name], torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def autocast(self):
        """The context of the forward pass: convolutions and matrix products in half precision."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer) -> None:
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        """What a run needs to resume exactly; empty but for fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state) -> None:
        """Go on with `state`; a run that changes to fp16 has none and starts its factor anew."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
