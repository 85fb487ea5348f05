"""The augmentation that a config asks for."""

from util import transform
from util.albumentation import Albumentations
from util.common import Mistake
from util.transform import MEAN, STD


def build_augmentation(cfg):
    """`augment(image, label, rng)` -> image (3, train_h, train_w) float32, normalised; label (train_h, train_w) int64.

    image (H, W, 3) RGB 0..255, uint8 or float32; label (H, W) integer ids. Mistake for an error in TRAIN.augmentation.
    """
    size, ignore_label = [cfg.train_h, cfg.train_w], cfg.ignore_label
    finish = [transform.ToTensor(), transform.Normalize(MEAN, STD)]
    if cfg.augmentation == "semseg":
        ops = [
            transform.RandScale([cfg.scale_min, cfg.scale_max]),
            transform.RandRotate([cfg.rotate_min, cfg.rotate_max], padding=MEAN, ignore_label=ignore_label),
            transform.RandomGaussianBlur(),
            transform.RandomHorizontalFlip(),
            transform.Crop(size, "rand", padding=MEAN, ignore_label=ignore_label),
            *finish,
        ]
    elif cfg.augmentation == "mmseg":
        ops = [
            transform.RandomResize(cfg.resize_box, [cfg.scale_min, cfg.scale_max]),
            transform.RandomCrop(size, cfg.cat_max_ratio, ignore_label),
            transform.RandomHorizontalFlip(),
            transform.PhotometricDistortion(),
            *finish,
            transform.PadTo(size, ignore_label),
        ]
    else:
        try:
            return Albumentations(cfg.augmentation, size, ignore_label, cfg.classes)
        except Mistake as mistake:
            lines = (f"{cfg.path}: TRAIN.augmentation: {line}" for line in str(mistake).splitlines())
            raise Mistake("\n".join(lines)) from None
    return transform.Compose(ops, lazy=True)
