"""Networks in files that run without this code: written by tool/export.py, run here through the one engine.

A file holds one graph: image (N, 3, h, w) float32 normalised -> logits (N, K, h, w) float32, any N, one h and w. What else it
takes to predict with it is in the file too, as text under the names of KEYS: in ONNX's metadata_props, pt2's extra files, or
OpenVINO's rt_info model_info.
"""

import contextlib
import importlib
import io
import json
import logging
import threading
import warnings
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from util.common import EXPORT_FORMATS, Mistake, first_line

VERSION = "1"
# config is YAML, of a run of tool/train.py; mean and std are R, G, B of 0..255; size is h, w. All but the texts are JSON.
KEYS = ("version", "config", "names", "palette", "mean", "std", "size", "epoch", "revision")
TEXTS = ("version", "config", "revision")


class Window(nn.Module):
    """A network whose logits are as large as the window, which the engine would otherwise resize them to."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        h, w = image.shape[2:]
        if getattr(self.network, "zoom_factor", 8) < 8:  # its first and last logits belong to the corners of sides of 8n+1
            image = F.pad(image, (0, (1 - w) % 8, 0, (1 - h) % 8))
        logits = self.network(image)
        if logits.shape[2:] != image.shape[2:]:
            logits = F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=True)
        return logits[..., :h, :w]


def write_exported(path, network, meta):
    """Write a network, in eval mode on the CPU, in the format of the path's suffix; for OpenVINO a .bin of the same name too.

    meta: values of KEYS without `version`. Raises Mistake if a package is missing or the disk does not take the file, and
    whatever the exporters raise.
    """
    form, (h, w) = format_of(path), meta["size"]
    needed = {"onnx": ("onnx", "onnxscript"), "pt2": (), "openvino": ("openvino",)}[form]
    packages = [_package(name, path) for name in needed]
    meta = {key: value if key in TEXTS else json.dumps(value) for key, value in {"version": VERSION, **meta}.items()}
    network, inputs = Window(network).eval(), (torch.zeros(2, 3, h, w),)
    sizes = ({0: torch.export.Dim("batch", min=1)},)
    with _quiet():
        if form == "onnx":
            names = {"input_names": ["image"], "output_names": ["logits"]}
            program = torch.onnx.export(network, inputs, dynamo=True, dynamic_shapes=sizes, verbose=False, **names)
            program.model.metadata_props.update(meta)
            with _disk_errors(path):
                program.save(path)
            return
        program = torch.export.export(network, inputs, dynamic_shapes=sizes)
        if form == "pt2":
            data = io.BytesIO()  # not the file itself: where the disk is full, torch's writer would end the process
            torch.export.save(program, data, extra_files=meta)
            with _disk_errors(path):
                Path(path).write_bytes(data.getbuffer())
        else:
            model = packages[0].convert_model(program, input=[("image", [-1, 3, h, w])])
            model.outputs[0].set_names({"logits"})
            for key, value in meta.items():
                model.set_rt_info(value, ["model_info", key])
            with _disk_errors(path, RuntimeError):  # OpenVINO's `iostream error`
                packages[0].save_model(model, path, compress_to_fp16=False)


class Exported:
    """A file of tool/export.py as a function (N, 3, h, w) float32 -> logits (N, K, h, w) float32, on the CPU, in float32.

    Attributes: path, form, and the values of KEYS. Raises Mistake if the file is not whole or not from there, or a package is
    missing.
    """

    def __init__(self, path):
        self.path, self.form = str(path), format_of(path)
        if not Path(path).is_file():
            raise Mistake(f"{path}: no such file")
        try:
            meta, self._run = {"onnx": _read_onnx, "pt2": _read_pt2, "openvino": _read_openvino}[self.form](path)
        except (Mistake, MemoryError):
            raise
        except Exception as error:  # a class of its own for each package and fault
            raise Mistake(f"{path}: damaged, or not a file of this format ({first_line(error)})") from error
        missing = [key for key in KEYS if not meta.get(key)]
        if missing:
            raise Mistake(f"{path}: was not written by tool/export.py: it has no {', '.join(missing)}")
        if meta["version"] != VERSION:
            raise Mistake(f"{path}: version {meta['version']} of the format, and this program reads {VERSION}; export it again")
        try:
            vars(self).update({key: meta[key] if key in TEXTS else json.loads(meta[key]) for key in KEYS})
            sound = len(self.names) and len(self.size) == 2 and all(type(side) is int and side > 0 for side in self.size)
        except (ValueError, TypeError):
            sound = False
        if not sound:
            raise Mistake(f"{path}: what it says about itself is damaged; export it again")

    def __reduce__(self):  # sessions cannot be pickled; another process reads the file again
        return Exported, (Path(self.path).absolute(),)

    def __str__(self):
        h, w = self.size
        return f"exported: {self.form}, windows of {h} x {w}, {len(self.names)} classes, code {self.revision}"

    def check_config(self, cfg):
        """Raise Mistake for a config with other classes, windows or precision."""
        if len(self.names) != cfg.classes:
            raise Mistake(f"{cfg.path}: DATA.classes: {cfg.classes}, but {self.path} has {len(self.names)}")
        if cfg.precision not in ("fp32", "auto"):
            raise Mistake(f"{cfg.path}: TRAIN.precision: {cfg.precision}, but {self.path} computes in fp32; set it to auto")
        (h, w), size = self.size, cfg.window
        if cfg.test_mode == "slide" and size != (h, w):
            raise Mistake(
                f"{cfg.path}: TEST.test_h, TEST.test_w: {size[0]} x {size[1]}, but {self.path} takes windows of {h} x {w}; "
                f"set them to {h} and {w}, or export it with --size {size[0]}x{size[1]}"
            )

    def __call__(self, image):
        check_window(self.path, image, self.size)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self._run(image.contiguous())


def check_window(path, image, size):
    """Raise Mistake unless windows (N, 3, h, w) have the size (h, w) of the exported file `path`."""
    found, own = (" x ".join(map(str, sides)) for sides in (image.shape[2:], size))
    if found != own:
        raise Mistake(
            f"{path}: takes windows of {own}, not {found}: test_mode whole, and average logit for images below the "
            "window, need windows of the image's size; set test_mode to slide and average to prob, or export it with --size"
        )


def format_of(path) -> str:
    """onnx, pt2 or openvino, by the suffix."""
    if Path(path).suffix not in EXPORT_FORMATS:
        known = ", ".join(f"{suffix} ({form})" for suffix, form in EXPORT_FORMATS.items())
        raise Mistake(f"{path}: the name must end with {known}")
    return EXPORT_FORMATS[Path(path).suffix]


def _read_onnx(path):
    runtime = _package("onnxruntime", path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    run = lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    return session.get_modelmeta().custom_metadata_map, run


def _read_pt2(path):
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise Mistake(f"{path}: damaged file ({damaged} does not match its checksum); export it again")
    meta = dict.fromkeys(KEYS, "")
    with _quiet():
        return meta, torch.export.load(path, extra_files=meta).module()


def _read_openvino(path):
    openvino, weights = _package("openvino", path), Path(path).with_suffix(".bin")
    if not weights.is_file():
        raise Mistake(f"{path}: its weights are missing, {weights}; copy both files")
    core = openvino.Core()
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise RuntimeError(str(error).strip().rpartition("\n")[2]) from error  # before it: where in OpenVINO
    meta = {key: model.get_rt_info(["model_info", key]).value for key in KEYS if model.has_rt_info(["model_info", key])}
    how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", how)
    lock = threading.Lock()  # `compiled` has one request, and one output, for all threads

    def run(image):
        with lock:
            return torch.from_numpy(compiled(image.numpy())[0].copy())

    return meta, run


def _package(name, path):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Mistake(f"{path}: needs a package that cannot be imported ({error}): pip install {name}") from None


@contextlib.contextmanager
def _disk_errors(path, *more):
    try:
        yield
    except (OSError, *more) as error:
        raise Mistake(f"{path}: could not be written ({first_line(error)}); is the disk full?") from error


@contextlib.contextmanager
def _quiet():
    """Exporters warn about their own insides."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
