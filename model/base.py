"""What all networks share: backbone, the two heads, image and label sizes, losses. Each adds its own context module."""

import torch
import torch.nn.functional as F
from torch import nn

from model.loss import CrossEntropy, upsample, upsampled_loss
from model.resnet import ResNet, feature_channels, load_backbone, recomputed
from util.common import Mistake

STAGES = "layer0", "layer1", "layer2", "layer3", "layer4"  # of the backbone


def make_head(inplanes, hidden, classes, dropout):
    return nn.Sequential(
        nn.Conv2d(inplanes, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(hidden, classes, 1),
    )


class SceneParser(nn.Module):
    """ResNet at output stride 8 -> context modules -> `cls`; `aux` on layer3 in training.

    context: {name: module}, applied in order to the features of layer4. A context module keeps height and width and
        has `out_channels` and `stride` (s: feature sides must be s*n+1 in training; 1: any side).
    criterion: (logits (N, K, H, W), label (N, H, W)) -> 0-d loss; None is CrossEntropy(ignore_label, mean=loss_mean).
    pretrained: path of ImageNet weights for the backbone, or None for random ones.
    size_rule: "grid" (semseg): sides of 8n+1, logits of n*zoom_factor+1; a test image of another size is padded at the
        bottom and right with 0 (the mean colour) and the logits are cut back.
        "input" (MMSegmentation): any size, logits of the image's size.
    align_corners: how logits (and what the context module resizes) are interpolated.
    checkpoint_layers: names of backbone stages, layer0 to layer4, whose activations are computed again in the backward pass
        instead of kept: same numbers, less memory, up to a third more time.
    fused_loss: compute the losses a few rows at a time, see `upsampled_loss`; False keeps all logits of label size.

    forward(image (N, 3, H, W) normalised), with logits of n*z+1 a side (the image's own size for zoom_factor z = 8):
        training, with label (N, H, W) int64 -> (pred (N, H', W') int64, main_loss, aux_loss); for z < 8 every (8/z)-th pixel
            of the label is used, or the label has the logits' size (N, H', W') already
        training, without label -> (logits (N, K, H', W'), aux_logits), for a loss outside the network
        eval -> logits (N, K, H', W'); cut to ceil(H*z/8) where the image was padded
    Logits are float32 even where the network computes in half precision.
    """

    def __init__(
        self,
        layers,
        dropout,
        classes,
        zoom_factor,
        criterion=None,
        pretrained=None,
        *,
        context,
        stem="deep",
        contract_dilation=False,
        align_corners=True,
        size_rule="grid",
        loss_mean="valid",
        ignore_label=255,
        fused_loss=True,
        checkpoint_layers=(),
    ):
        super().__init__()
        if zoom_factor not in (1, 2, 4, 8):
            raise Mistake(f"zoom_factor: {zoom_factor!r} is not possible; choose one of 1, 2, 4, 8")
        if size_rule not in ("grid", "input"):
            raise Mistake(f"size_rule: {size_rule!r} is unknown; choose grid or input")
        if size_rule == "input" and zoom_factor != 8:
            raise Mistake(f"zoom_factor: {zoom_factor} needs size_rule grid; with input only 8 is possible")
        if unknown := [name for name in checkpoint_layers if name not in STAGES]:
            raise Mistake(f"checkpoint_layers: {unknown[0]!r} is unknown; give a list of {', '.join(STAGES)}")
        self.classes, self.zoom_factor, self.ignore_label = classes, zoom_factor, ignore_label
        self.align_corners, self.size_rule, self.fused_loss = align_corners, size_rule, fused_loss
        self.contract_dilation = contract_dilation
        self.checkpoint_layers = tuple(checkpoint_layers)
        self.criterion = CrossEntropy(ignore_label, mean=loss_mean) if criterion is None else criterion

        backbone = ResNet(layers, stem, contract_dilation)
        if pretrained is True:
            raise ValueError("pretrained: give the path of the ImageNet weights, such as initmodel/resnet50_v2.pth")
        if pretrained:
            load_backbone(backbone, pretrained, read=lambda path: torch.load(path, map_location="cpu", weights_only=True))
        for name, stage in backbone.named_children():
            self.add_module(name, stage)
        channels = feature_channels(layers)
        self.stride, width = 8, channels
        self.context_names = tuple(context)
        for name, module in context.items():
            self.add_module(name, module)
            self.stride, width = self.stride * module.stride, module.out_channels
        self.cls = make_head(width, channels // 4, classes, dropout)
        self.aux = make_head(channels // 2, channels // 8, classes, dropout)

    def backbone_modules(self):
        """The modules that start from ImageNet weights."""
        return [getattr(self, name) for name in STAGES]

    def head_modules(self):
        """The modules without ImageNet weights; semseg trains them at ten times the learning rate."""
        return [*(getattr(self, name) for name in self.context_names), self.cls, self.aux]

    def classifiers(self):
        """The last convolution of each head."""
        return [self.cls[4], self.aux[4]]

    def head(self, features):
        """Features of layer4 (N, C, h, w) -> logits (N, K, h, w) at 1/8 of the image's size."""
        for name in self.context_names:
            features = getattr(self, name)(features)
        return self.cls(features)

    def forward(self, image, label=None):
        h, w = image.shape[-2:]
        if self.training:
            self._check_size(h, w)
        elif self.size_rule == "grid":
            # No `%` of negative numbers: torch.compile with dynamic sizes cannot handle it.
            right, below = ((side + self.stride - 2) // self.stride * self.stride + 1 - side for side in (w, h))
            image = F.pad(image, (0, right, 0, below))
        third = image
        for name in ("layer0", "layer1", "layer2", "layer3"):
            third = self._stage(name, third)
        logits = self.head(self._stage("layer4", third))
        size = tuple(self._logit_side(side) for side in image.shape[-2:])
        if not self.training:
            return upsample(logits, size, self.align_corners)[..., : self._logit_side(h), : self._logit_side(w)]

        aux_logits = self.aux(third)
        if label is None:
            return upsample(logits, size, self.align_corners), upsample(aux_logits, size, self.align_corners)
        label = self.label_of_logits(label, image)
        how = size, label, self.criterion, self.align_corners
        main_loss, pred = upsampled_loss(logits, *how, fused=self.fused_loss)
        aux_loss, _ = upsampled_loss(aux_logits, *how, predict=False, fused=self.fused_loss)
        return pred, main_loss, aux_loss

    def _stage(self, name, x):
        stage = getattr(self, name)
        if name not in self.checkpoint_layers or not torch.is_grad_enabled():
            return stage(x)
        for block in [stage] if name == "layer0" else stage:
            x = recomputed(block, x)
        return x

    def label_of_logits(self, label, image=None):
        """label (N, H, W) at the logits' positions: every (8 / zoom_factor)-th pixel, all of them for 8.

        With image (N, 3, H, W), a label that has the logits' size is returned as it is, and any third size raises ValueError.
        """
        if image is not None:
            n, _, h, w = image.shape
            allowed = [(n, h, w), (n, self._logit_side(h), self._logit_side(w))]
            if label.shape not in allowed:
                expected = " or ".join(map(str, dict.fromkeys(allowed)))
                raise ValueError(f"label {tuple(label.shape)} for image {tuple(image.shape)}: expected {expected}")
            if label.shape != allowed[0]:
                return label
        step = 8 // self.zoom_factor
        return label[..., ::step, ::step]

    def valid_pixels(self, label):
        """Weight of this batch's loss in a larger batch, 0-d float32: the criterion's `normaliser`, else the valid pixels.

        label: (N, H, W) of the image's size.
        """
        label = self.label_of_logits(label)
        if hasattr(self.criterion, "normaliser"):
            return self.criterion.normaliser(label)
        return (label != self.ignore_label).sum().float()

    def _logit_side(self, side):
        return (side * self.zoom_factor + 7) // 8

    def training_sides(self, side):
        """(side,) if training images may have this height or width, else the next smaller and the next larger that they may."""
        below = (side - 1) // self.stride * self.stride + 1
        return (side,) if self.size_rule == "input" or below == side else (below, below + self.stride)

    def _check_size(self, h, w):
        sides = {"height": (h, self.training_sides(h)), "width": (w, self.training_sides(w))}
        wrong = [
            f"{name} {side} (the nearest: {near[0]} and {near[1]})" for name, (side, near) in sides.items() if len(near) > 1
        ]
        if wrong:
            raise Mistake(
                f"image of {h} x {w} (h x w): training needs sides of {self.stride}n+1, not {' and '.join(wrong)}; "
                "change train_h and train_w"
            )
