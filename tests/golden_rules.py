"""How the golden numbers were made: weights drawn by their name, inputs, labels and images by a tag."""

import math
import zlib

import torch
import torch.nn.functional as F


def generator(text):
    """A CPU generator seeded by the text alone."""
    return torch.Generator("cpu").manual_seed(zlib.crc32(text.encode()))


def draw(name, shape):
    """The float32 tensor (int64 for num_batches_tracked) that the filling rule gives this state_dict name."""
    g = generator(name)
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) == 4:
        return torch.randn(shape, generator=g) * math.sqrt(2 / math.prod(shape[1:]))
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=g)
    if name.endswith(("running_mean", ".bias")):
        return 0.1 * torch.randn(shape, generator=g)
    return 0.4 + 0.5 * torch.rand(shape, generator=g)


@torch.no_grad()
def fill_(net, names=None):
    """Fill every tensor of net's state_dict by its name, or by names[its name]; returns net."""
    for name, tensor in net.state_dict().items():
        tensor.copy_(draw(names[name] if names else name, tensor.shape))
    return net


def golden_input(tag, n, h, w):
    """(n, 3, h, w) float32."""
    return torch.randn(n, 3, h, w, generator=generator(f"input_{tag}"))


def golden_label(tag, n, h, w, classes, ignore_label=255):
    """(n, h, w) int64, about a fifth of it ignored."""
    g = generator(f"label_{tag}")
    label = torch.randint(0, classes, (n, h, w), generator=g)
    label[torch.rand(n, h, w, generator=g) < 0.2] = ignore_label
    return label


def golden_image(tag, h, w, classes, ignore_label=255):
    """A smooth noisy picture: image (h, w, 3) uint8 and label (h, w) uint8, as NumPy arrays."""
    g = generator(f"image_{tag}")
    smooth = torch.rand(1, 3, h // 8 + 2, w // 8 + 2, generator=g)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # as they were made: on one thread the last bit of a value is another, and so is one pixel
    smooth = F.interpolate(smooth, (h, w), mode="bilinear", align_corners=True)[0] * 255
    torch.set_num_threads(threads)
    image = (smooth + 12 * torch.randn(3, h, w, generator=g)).clamp(0, 255).to(torch.uint8)
    blocks = torch.randint(0, classes, (1, 1, h // 10 + 2, w // 10 + 2), generator=g).float()
    label = F.interpolate(blocks, (h, w), mode="nearest")[0, 0].to(torch.uint8)
    label[torch.rand(h, w, generator=g) < 0.05] = ignore_label
    return image.permute(1, 2, 0).contiguous().numpy(), label.numpy()
