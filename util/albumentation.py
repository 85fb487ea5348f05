"""A pipeline of Albumentations, an optional package, instead of our own transforms."""

import inspect
import math
import os
import random
import warnings

import cv2
import numpy as np

from util.common import Mistake, did_you_mean
from util.transform import MEAN, STD, Compose, Normalize, ToTensor, check_arrays, to_uint8, wide_enough

NEAREST = (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)


class Albumentations:
    """`t(image, label, rng)` for `pipeline`, a sequence of mappings {Class: {argument: value}} named as in the package.

    Compositions hold entries of the same form: {OneOf: {transforms: [{Blur: {p: 1}}, {MedianBlur: }], p: 0.5}}. Where the
    package would fill the label with class 0, it is filled with ignore_label; a `fill_mask` that is stated must be that or one
    of the classes. The numbers of a sample come from `rng` alone.

    image (H, W, 3) RGB 0..255, uint8 or float32 (rounded) -> (3, h, w) float32, normalised, where (h, w) = size, or Mistake:
    the pipeline has to end with a crop. label (H, W) integer ids -> (h, w) int64, never interpolated. Errors in the
    pipeline are one Mistake with a line for each.
    """

    lazy = True  # takes images as uint8, for SemData

    def __init__(self, pipeline, size, ignore_label=255, classes=math.inf):
        package = _package()
        mistakes = []
        transforms = _build(package, pipeline, (ignore_label, classes), "entry", mistakes)
        if mistakes:
            raise Mistake("\n".join(mistakes))
        self.size, self.ignore_label = tuple(size), ignore_label
        self.pipeline = package.Compose(transforms)
        self.finish = Compose([ToTensor(), Normalize(MEAN, STD)])

    def __call__(self, image, label, rng=random):
        image, label = check_arrays(image, label)
        # One pair of generators for all transforms. The package's own set_random_seed gives each a generator with the same
        # seed: then all draw the same numbers, and an image is blurred whenever it is flipped.
        seed = rng.randint(0, 2**63 - 1)
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            out = self.pipeline(image=np.asarray(to_uint8(image)), mask=np.asarray(wide_enough(label, self.ignore_label)))
        except Exception as error:
            raise Mistake(f"TRAIN.augmentation, on an image of shape {image.shape}: {error}") from error
        image, label = out["image"], out["mask"]
        h, w = self.size
        if image.shape != (h, w, 3):
            raise Mistake(f"TRAIN.augmentation: the pipeline made an image of shape {image.shape}, and train_h, train_w ask "
                          f"for {(h, w, 3)}: let it end with RandomCrop: {{height: {h}, width: {w}}}")  # fmt: skip
        return self.finish(image, label)


def _package():
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import asks the network for a newer version
    try:
        import albumentations
    except ImportError as error:
        raise Mistake(f"a pipeline needs albumentations: pip install albumentations ({error})") from None
    if not hasattr(albumentations.Compose, "set_random_state"):
        raise Mistake(f"albumentations {albumentations.__version__} is too old: pip install 'albumentations>=2.0.8'")
    return albumentations


def _build(package, entries, ids, place, mistakes):
    """The package's objects for a list of entries; what is wrong with them is added to `mistakes`."""
    if not isinstance(entries, list | tuple) or not entries:
        mistakes.append(f"{place}: expected a list of transforms, found {entries!r}")
        return []
    built = []
    for number, entry in enumerate(entries, 1):
        here = f"{place} {number}"
        if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry.values())), dict | None):
            mistakes.append(f"{here}: expected one `Class: {{argument: value}}`, found {entry!r}")
            continue
        ((name, arguments),) = entry.items()
        try:
            built.append(_make(package, name, dict(arguments or {}), ids, f"{here}: {name}", mistakes))
        except Exception as error:  # whatever the package's constructors raise
            mistakes.append(f"{here}: {name}: {_in_a_line(error)}")
    return built


def _make(package, name, arguments, ids, here, mistakes):
    """One transform or composition, or None if there are mistakes in what it is composed of."""
    ignore_label, classes = ids
    if name == "GridElasticDeform":  # what its quadrilaterals leave open is class 0, and no argument changes that
        raise ValueError("it fills labels with class 0: take ElasticTransform or GridDistortion")
    if arguments.get("area_for_downscale") == "image_mask":
        raise ValueError("area_for_downscale = image_mask: ids cannot be interpolated, take image")
    bases = package.BasicTransform, package.BaseCompose
    known = {key: item for key, item in vars(package).items() if inspect.isclass(item) and issubclass(item, bases)}
    if name not in known:
        raise ValueError(f"albumentations {package.__version__} has no such transform{did_you_mean(name, known)}")
    if name in ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"):
        raise ValueError("leave it out: after the pipeline images are normalised and become tensors")
    parameters = inspect.signature(known[name]).parameters
    for argument in arguments:  # the package only warns
        if argument not in parameters:
            raise ValueError(f"unknown argument {argument}{did_you_mean(argument, parameters)}")
    if "transforms" in parameters:
        before = len(mistakes)
        arguments["transforms"] = _build(package, arguments.get("transforms"), ids, f"{here}: entry", mistakes)
        if len(mistakes) > before:
            return None
    if "fill_mask" in parameters and parameters["fill_mask"].default is not None:  # None: the label stays as it is
        arguments.setdefault("fill_mask", ignore_label)
    for argument in ("fill_mask", "mask_drop_value"):
        fill = arguments.get(argument)
        for value in fill if isinstance(fill, list | tuple) else [fill]:
            if isinstance(value, int | float) and value != ignore_label and (value % 1 or not 0 <= value < classes):
                raise ValueError(f"{argument} = {fill} is neither a class nor the ignore_label {ignore_label}: leave it out")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = known[name](**arguments)
    if "fill_mask" not in parameters and getattr(made, "fill_mask", None) == 0:  # TimeMasking, FrequencyMasking
        made.fill_mask = ignore_label
    for warning in caught:
        if str(warning.message).partition(":")[0] in arguments:  # it took another value than the one given
            raise ValueError(str(warning.message))
        warnings.warn(f"{here}: {warning.message}", stacklevel=2)
    if getattr(made, "mask_interpolation", NEAREST[0]) not in (*NEAREST, None):
        raise ValueError(f"mask_interpolation = {made.mask_interpolation}: ids cannot be interpolated, leave it out")
    return made


def _in_a_line(error):
    """The message without line breaks; of pydantic's errors `argument: message` for each."""
    if not hasattr(error.__cause__, "errors"):
        return " ".join(str(error).split())
    return "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.__cause__.errors())
