"""What every network here shares: backbone, the two heads, sizes, losses. A network adds its context module only."""

import torch
import torch.nn.functional as F
from torch import nn

from model.loss import CrossEntropy, upsample, upsampled_loss
from model.resnet import ResNet, feature_channels, load_backbone, recomputed


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
        states `out_channels` and `stride` (s: it wants features of s*n+1 cells a side; 1 if it takes any).
    criterion: (logits (N, K, H, W), label (N, H, W)) -> 0-d loss; None is CrossEntropy(ignore_label, mean=loss_mean).
    pretrained: path of ImageNet weights for the backbone, or None for random ones.
    size_rule: "grid" (semseg): sides of 8n+1, logits of n*zoom_factor+1; a test image of another size is padded at the
        bottom and right with 0 (the mean colour) and the logits are cut back.
        "input" (MMSegmentation): any size, logits of the image's size.
    align_corners: how logits (and what the context module resizes) are interpolated.
    checkpoint_layers: names of backbone stages, layer0 to layer4, whose insides are computed again in the backward pass
        instead of kept: same numbers, less memory, up to a third more time.
    fused_loss: compute the losses a few rows at a time, see `upsampled_loss`; False keeps all large logits.

    forward(image (N, 3, H, W) normalised), with logits of n*z+1 a side (the image's own size for zoom_factor z = 8):
        training, with label (N, H, W) int64 -> (pred (N, H', W') int64, main_loss, aux_loss); for z < 8 the losses are
            those of `label_of_logits(label)`, every (8/z)-th pixel
        training, without label -> (logits (N, K, H', W'), aux_logits), raw, for a loss of one's own
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
            raise ValueError(f"zoom_factor: {zoom_factor!r} is not possible; choose one of 1, 2, 4, 8")
        if size_rule not in ("grid", "input"):
            raise ValueError(f"size_rule: {size_rule!r} is unknown; choose grid or input")
        if size_rule == "input" and zoom_factor != 8:
            raise ValueError(f"zoom_factor: {zoom_factor} needs size_rule grid; with input only 8 is possible")
        self.classes, self.zoom_factor, self.ignore_label = classes, zoom_factor, ignore_label
        self.align_corners, self.size_rule, self.fused_loss = align_corners, size_rule, fused_loss
        self.checkpoint_layers = tuple(checkpoint_layers)
        self.criterion = CrossEntropy(ignore_label, mean=loss_mean) if criterion is None else criterion

        backbone = ResNet(layers, stem, contract_dilation)
        if pretrained is True:
            raise ValueError("pretrained: give the path of the ImageNet weights, such as initmodel/resnet50_v2.pth")
        if pretrained:
            load_backbone(backbone, pretrained)
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
        return [self.layer0, self.layer1, self.layer2, self.layer3, self.layer4]

    def head_modules(self):
        """The modules that start from nothing, and learn at ten times the rate in semseg."""
        return [*(getattr(self, name) for name in self.context_names), self.cls, self.aux]

    def classifiers(self):
        """The layers that give logits."""
        return [self.cls[4], self.aux[4]]

    def head(self, features):
        """Features of layer4 (N, C, h, w) -> small logits (N, K, h, w)."""
        for name in self.context_names:
            features = getattr(self, name)(features)
        return self.cls(features)

    def forward(self, image, label=None):
        h, w = image.shape[-2:]
        if self.size_rule == "grid":
            if self.training:
                self._check_size(h, w)
            else:
                # No `%`: torch.compile with sizes that change knows it of no negative number.
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
        if label.shape != (image.shape[0], h, w):
            raise ValueError(
                f"label of shape {tuple(label.shape)} for image of shape {tuple(image.shape)}: "
                f"expected {(image.shape[0], h, w)}"
            )
        label = self.label_of_logits(label)
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

    def label_of_logits(self, label):
        """label (N, H, W) at the places of the logits: every (8 / zoom_factor)-th pixel, all of them for 8."""
        step = 8 // self.zoom_factor
        return label[..., ::step, ::step]

    def valid_pixels(self, label):
        """What the losses of label (N, H, W) are divided by, 0-d float32: the weight of this batch in a larger one."""
        label = self.label_of_logits(label)
        if hasattr(self.criterion, "normaliser"):
            return self.criterion.normaliser(label)
        return (label != self.ignore_label).sum().float()

    def _logit_side(self, side):
        return (side * self.zoom_factor + 7) // 8

    def _check_size(self, h, w):
        wrong = []
        for name, side in (("height", h), ("width", w)):
            below = (side - 1) // self.stride * self.stride + 1
            if below != side:
                wrong.append(f"{name} {side} (the nearest: {below} and {below + self.stride})")
        if wrong:
            raise ValueError(
                f"image of {h} x {w} (h x w): training needs sides of {self.stride}n+1, not "
                f"{' and '.join(wrong)}; change train_h and train_w"
            )
