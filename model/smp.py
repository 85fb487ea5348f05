"""The PSPNet of the package segmentation_models_pytorch, with the interface of SceneParser."""

import torch.nn.functional as F
from torch import nn

from model.base import SceneParser
from model.loss import CrossEntropy, upsample
from util.common import Mistake


def import_package():
    """segmentation_models_pytorch, which takes seconds to import and only this network needs. Not on the meta device: it loads
    torch's compiler, and that of torch 2.8 cannot be loaded there."""
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise Mistake(f"arch: smp_pspnet needs a package that cannot be imported ({error}): "
                      'pip install "segmentation-models-pytorch>=0.5"') from None  # fmt: skip
    return segmentation_models_pytorch


class SMPPSPNet(nn.Module):
    """The package's encoder, decoder and segmentation_head under their own names, with random weights.

    Its ResNet ends with layer2, at 1/8 of the image's size and not dilated; layer3 and layer4, which the package has but
    does not use, are left out. There is no auxiliary head.

    forward(image (N, 3, H, W) normalised), sides of any length: padded at the bottom and right with 0 (the mean colour) to
    multiples of 8, and the logits cut back:
        training, with label (N, H, W) int64 -> (pred (N, H, W) int64, main_loss, aux_loss), the last always 0
        training, without label -> (logits (N, K, H, W), None)
        eval -> logits (N, K, H, W)
    Logits are float32 even where the network computes in half precision.
    """

    zoom_factor = 8  # logits are as large as the image
    label_of_logits, valid_pixels, _logit_side = SceneParser.label_of_logits, SceneParser.valid_pixels, SceneParser._logit_side

    def __init__(self, layers, dropout, classes, criterion=None, ignore_label=255):
        super().__init__()
        PSPNet = import_package().PSPNet
        self.layers, self.classes, self.ignore_label = layers, classes, ignore_label
        self.criterion = CrossEntropy(ignore_label) if criterion is None else criterion
        theirs = PSPNet(f"resnet{layers}", encoder_weights=None, encoder_depth=3, psp_dropout=dropout, classes=classes)
        self.encoder, self.decoder, self.segmentation_head = theirs.encoder, theirs.decoder, theirs.segmentation_head
        self.encoder.layer3 = self.encoder.layer4 = nn.Identity()

    def backbone_modules(self):
        """The modules that start from ImageNet weights."""
        return [self.encoder]

    def head_modules(self):
        """The modules without ImageNet weights."""
        return [self.decoder, self.segmentation_head]

    def classifiers(self):
        """The last convolution."""
        return [self.segmentation_head[0]]

    def training_sides(self, side):
        """(side,): training images may have any height and width."""
        return (side,)

    def forward(self, image, label=None):
        h, w = image.shape[-2:]
        padded = F.pad(image, (0, (w + 7) // 8 * 8 - w, 0, (h + 7) // 8 * 8 - h))  # no `%`, see SceneParser.forward
        small = self.segmentation_head[0](self.decoder(self.encoder(padded)))
        logits = upsample(small, padded.shape[-2:], align_corners=True)[..., :h, :w]  # as the rest of their head
        if not self.training:
            return logits
        if label is None:
            return logits, None
        loss = self.criterion(logits, self.label_of_logits(label, image))
        return logits.detach().max(1).indices, loss, loss.new_zeros(())
