"""tool/demo.py from a checkpoint alone: pictures, videos, a camera. Its ids: tests/test_test_and_demo.py."""

import os
import re
import resource
import shutil
import signal
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from model import build_model
from tool import demo
from util.checkpoint import save_checkpoint
from util.common import Mistake
from util.config import dump_config, load_config
from util.inference import Predictor
from util.log import ProgressBar, build_logger
from util.video import UnfitVideo, VideoReader, write_video
from util.visual import below, legend, overlay

NAMES = ["road", "sky", "traffic light", "Straße"]
PALETTE = np.uint8([[128, 64, 128], [0, 0, 255], [255, 255, 0], [0, 200, 0]])
RATE, COUNT, H, W = 7.5, 6, 48, 64


@pytest.fixture(scope="module")
def frames():
    """(COUNT, H, W, 3) RGB: three patches that move over a ramp."""
    ramp = np.linspace(0, 255, W, dtype=np.uint8)[None, :, None]
    frames = np.repeat(np.broadcast_to(ramp, (1, H, W, 3)), COUNT, 0).copy()
    for t in range(COUNT):
        for i, color in enumerate(((220, 30, 30), (30, 220, 30), (30, 30, 220))):
            frames[t, 2 + 15 * i : 15 + 15 * i, 4 + 6 * t : 24 + 6 * t] = color
    return frames


@pytest.fixture(scope="module")
def project(narrow, frames, tmp_path_factory):
    """A checkpoint as a training writes it, whose network tells the patches apart, a picture and a video of the frames."""
    root = tmp_path_factory.mktemp("project")
    sizes = {"classes": 4, "train_h": 33, "train_w": 33, "test_h": 33, "test_w": 33, "base_size": 64}
    sizes |= {"scales": [1.0], "flip": False, "names_path": "null", "colors_path": "null", "class_weights": "null"}
    options = [str(word) for pair in sizes.items() for word in pair]
    cfg = load_config("toy_pspnet18", options)
    torch.manual_seed(0)
    network = build_model(cfg)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over the batches below: random weights answer differently to different pixels
    with torch.no_grad():
        x = torch.from_numpy(frames).permute(0, 3, 1, 2)[..., :33, :33].float()
        network.train()((x - 120) / 60, torch.zeros(len(x), 33, 33, dtype=torch.int64))
        network.cls[4].bias.zero_()
    content = {"config": dump_config(cfg), "names": NAMES, "palette": PALETTE.tolist(), "state_dict": network.state_dict()}
    save_checkpoint(content, root / "best.pth")
    Image.fromarray(frames[0]).save(root / "picture.png")
    write(root / "drive.mp4", frames)
    return root


def write(path, frames, code="mp4v", rate=RATE):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def read(path):
    """The frames (T, H, W, 3) RGB of a video, and its rate."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame[..., ::-1])
    return np.array(frames), capture.get(cv2.CAP_PROP_FPS)


def show(project, *words):
    return demo.main(["--model", str(project / "best.pth"), *map(str, words)])


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def expected(project, frames):
    """(ids, overlay) of each frame."""
    predictor = Predictor(project / "best.pth", device="cpu")
    return [(ids, overlay(frame, ids, PALETTE)) for frame in frames for ids in [predictor(frame)]]


def assert_shows(path, pictures, rate=RATE):
    """The video is what its codec makes of the pictures, (H, W, 3) RGB with even sides."""
    shown, found = read(path)
    again = read(write(path.with_name("again.mp4"), np.array(pictures), rate=rate))[0]
    path.with_name("again.mp4").unlink()
    assert found == rate and shown.shape == np.shape(pictures) and np.array_equal(shown, again)


def even(picture):
    return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), "edge")


def test_a_checkpoint_is_enough_and_a_config_may_be_named(project, frames, tmp_path, monkeypatch):
    ids, seen = expected(project, frames[:1])[0]
    assert len(np.unique(ids)) > 1
    monkeypatch.chdir(tmp_path)
    picture = project / "picture.png"
    assert show(project, "--image", picture, "--no-legend", "--out", "a") == 0
    color = Image.open("a/picture_color.png")
    assert np.array_equal(Image.open("a/picture_gray.png"), ids) and np.array_equal(Image.open("a/picture_overlay.png"), seen)
    assert color.getpalette()[:12] == PALETTE.ravel().tolist()
    options = "classes 4 class_weights null names_path null colors_path null test_h 33 test_w 33 base_size 64".split()
    options += ["scales", "[1.0]", "flip", "False"]
    for i, words in enumerate((["toy_pspnet18", "--model_path"], ["--config", "toy_pspnet18", "--model-path"])):
        assert demo.main([*words, str(project / "best.pth"), "--image", str(picture), "--out", str(i), *options]) == 0
        assert np.array_equal(Image.open(f"{i}/picture_gray.png"), ids)
    assert demo.main([str(project / "best.pth"), "--image", str(picture)]) == 0
    assert np.array_equal(Image.open("demo/picture_gray.png"), ids)


def test_several_pictures_and_keys_may_follow_image(project, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((project / "picture.png").read_bytes())
    assert show(project, "--out", tmp_path / "out", "--image", tmp_path / "a.png", tmp_path, "scales", "[0.5]") == 0
    assert names_in(tmp_path / "out") == [f"{x}_{kind}.png" for x in "ab" for kind in ("color", "gray", "overlay")]
    half = Predictor(project / "best.pth", device="cpu", scales=[0.5])(project / "picture.png")
    assert np.array_equal(Image.open(tmp_path / "out/b_gray.png"), half)


@pytest.mark.parametrize("words, message", [
    (["--image", "x.png", "--lgend"], "unrecognized arguments: --lgend"),
    (["--image", "x.mp4", "--frames", "0"], "--frames 0: must be 1 or more"),
    (["--image", "scales", "[1.0]"], "argument --image: expected at least one file"),
])  # fmt: skip
def test_wrong_usage_ends_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main(words)
    assert message in capsys.readouterr().err


def test_without_a_network_it_asks_for_one(project, tmp_path, capsys):
    assert demo.main(["--image", str(project / "picture.png"), "--out", str(tmp_path / "out")]) == 1
    assert "error: command line: which network? Give --model FILE.pth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("video", [".mp4 mp4v", ".avi MJPG", ".mov mp4v", ".mkv mp4v", ".webm VP80"])
def test_a_video_becomes_one_of_its_overlays(project, frames, tmp_path, capsys, video):
    suffix, code = video.split()
    path = write(tmp_path / f"drive{suffix}", frames, code)
    assert show(project, "--image", path, "--out", tmp_path / "out", "--no-legend") == 0
    assert names_in(tmp_path / "out") == ["drive_overlay.mp4"]
    results = expected(project, read(path)[0])
    assert len(results) == COUNT
    assert_shows(tmp_path / "out/drive_overlay.mp4", [seen for _, seen in results])
    pixels = np.bincount(np.ravel([ids for ids, _ in results]), minlength=4)
    best = pixels.argmax()
    line = rf"drive_overlay.mp4: 6 frames, {NAMES[best]} {pixels[best] / pixels.sum():.0%}.* frames/s\)"
    assert re.search(line, capsys.readouterr().out)


def test_a_video_has_the_legend_below_every_frame(project, frames, tmp_path):
    assert show(project, "--image", project / "drive.mp4", "--out", tmp_path) == 0
    strip = legend(NAMES, PALETTE, (H, W))
    overlays = [seen for _, seen in expected(project, read(project / "drive.mp4")[0])]
    assert_shows(tmp_path / "drive_overlay.mp4", [even(below(seen, strip)) for seen in overlays])


def test_side_by_side_shows_the_picture_and_its_overlay(project, frames, tmp_path):
    inputs = (project / "picture.png", project / "drive.mp4")
    assert show(project, "--image", *inputs, "--out", tmp_path, "--side-by-side", "--no-legend") == 0
    picture = np.hstack([frames[0], expected(project, frames[:1])[0][1]])
    assert np.array_equal(Image.open(tmp_path / "picture_overlay.png"), picture)
    decoded = read(project / "drive.mp4")[0]
    pairs = [np.hstack([frame, seen]) for frame, (_, seen) in zip(decoded, expected(project, decoded))]
    assert_shows(tmp_path / "drive_overlay.mp4", pairs)


def test_a_video_with_odd_sides_gets_one_pixel_more(frames, tmp_path):
    with write_video(tmp_path / "odd.mp4", RATE) as append:
        for frame in frames:
            append(frame[:-1, :-1])
    assert_shows(tmp_path / "odd.mp4", [even(frame[:-1, :-1]) for frame in frames])


def test_a_relative_path_of_a_video_may_have_a_colon(frames, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with write_video("seen:1/10:30_overlay.mp4", RATE) as append:
        append(frames[0])
    assert names_in(tmp_path / "seen:1") == ["10:30_overlay.mp4"]


def test_a_video_whose_name_is_not_utf_8_is_named_and_ends_nothing(project, frames, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(project / "drive.mp4", path)
    assert show(project, "--image", path, project / "picture.png", "--out", tmp_path / "seen") == 1
    assert (tmp_path / "seen/picture_overlay.png").exists()
    with pytest.raises(Mistake, match="caf\udce9.mp4: the path of a video must be UTF-8 for OpenCV; rename"):
        VideoReader(path)
    folder = tmp_path / os.fsdecode(b"\xe9")
    with pytest.raises(Mistake, match="must be UTF-8"), write_video(folder / "a.mp4", RATE) as append:
        append(frames[0])


def test_a_picture_that_is_named_in_two_ways_is_one_and_other_class_names_are_told(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    (tmp_path / "names").write_text("\n".join(["sky", *NAMES[1:]]))
    inputs = ("picture.png", project / "picture.png", "./picture.png")
    assert show(project, "--image", *inputs, "--out", tmp_path / "seen", "names_path", tmp_path / "names") == 0
    assert len([*(tmp_path / "seen").glob("*_gray.png")]) == 1
    assert f"names_path: the checkpoint has other names: class 0 was {NAMES[0]} and is sky" in capsys.readouterr().out


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Path, "is_file", denied)  # as Python before 3.14 does in a folder that cannot be entered
    assert demo.find_files(str(tmp_path), build_logger()) == [tmp_path / "a.png"]
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(Mistake, match=f"^--image {tmp_path}: permission denied"):
        demo.find_files(str(tmp_path), build_logger())


def test_files_of_a_folder_that_are_no_pictures_are_named_and_a_pattern_says_what_is_one(tmp_path, capsys):
    for name in ("a.png", "b.gif", "c.txt"):
        (tmp_path / name).touch()
    assert demo.find_files(str(tmp_path), build_logger()) == [tmp_path / "a.png"]
    note = "left alone, since their names do not end as pictures' do: b.gif, c.txt"
    assert f"--image {tmp_path}: {note}" in capsys.readouterr().out
    assert demo.find_files(f"{tmp_path}/*.gif", build_logger()) == [tmp_path / "b.gif"]
    assert demo.find_files(f"{tmp_path}/*", build_logger()) == [tmp_path / "a.png"]


def test_a_folder_in_place_of_a_network_is_named(project, tmp_path, capsys):
    assert demo.main(["--model", str(tmp_path), "--image", "a.png"]) == 1
    assert f"--model {tmp_path}: not the file of a network (.pth .pt .pth.tar" in capsys.readouterr().err


def test_a_video_is_turned_upright(project, frames, tmp_path):
    data = bytearray((project / "drive.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44  # after version, flags, times, id, duration, layer and volume
    assert data[matrix : matrix + 4] == struct.pack(">i", 1 << 16)
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, H << 16, 0, 1 << 30)
    (tmp_path / "phone.mp4").write_bytes(data)
    upright = np.rot90(read(project / "drive.mp4")[0], -1, (1, 2))
    assert show(project, "--image", tmp_path / "phone.mp4", "--out", tmp_path / "out", "--no-legend") == 0
    assert_shows(tmp_path / "out/phone_overlay.mp4", [seen for _, seen in expected(project, upright)])


def test_frames_ends_a_video_early(project, tmp_path):
    assert show(project, "--image", project / "drive.mp4", "--out", tmp_path, "--frames", 2) == 0
    assert len(read(tmp_path / "drive_overlay.mp4")[0]) == 2


def test_a_bar_shows_how_far_a_video_is(project, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(ProgressBar, "show", lambda bar, done: told.append((bar.title, done, bar.total)))
    assert show(project, "--image", project / "drive.mp4", "--out", tmp_path) == 0
    assert told == [("drive_overlay.mp4", i + 1, COUNT) for i in range(COUNT)]


def test_bad_videos_are_named_and_the_others_done(project, tmp_path, capfd):
    whole = (project / "drive.mp4").read_bytes()
    bad = {"text.mp4": b"no video at all" * 99, "cut.mp4": whole[: len(whole) // 2], "empty.avi": b""}
    for name, content in {**bad, "whole.mp4": whole}.items():
        (tmp_path / name).write_bytes(content)
    inputs = [tmp_path / name for name in ("text.mp4", "cut.mp4", "empty.avi", "whole.mp4")]
    assert show(project, "--image", *inputs, "--out", tmp_path / "out") == 1
    error = capfd.readouterr().err
    assert error == (
        "error: 3 of 4 inputs are not done:\n"
        f"{tmp_path}/text.mp4: no frame of a video in it (not a video, cut short, or of a kind that OpenCV does not read)\n"
        f"{tmp_path}/cut.mp4: no frame of a video in it (not a video, cut short, or of a kind that OpenCV does not read)\n"
        f"{tmp_path}/empty.avi: the file is empty (0 bytes): copy or download it again\n"
    )
    assert names_in(tmp_path / "out") == ["whole_overlay.mp4"] and len(read(tmp_path / "out/whole_overlay.mp4")[0]) == COUNT


def test_a_video_that_mpeg_4_cannot_hold_is_named_and_the_others_done(project, tmp_path, monkeypatch, capfd):
    def frames(width):
        with write_video(tmp_path / f"{width}.mp4", RATE) as append:
            append(np.zeros((43, width, 3), np.uint8))

    frames(8190)
    with pytest.raises(UnfitVideo, match="8192 x 43 pixels at 7.5 frames a second; MPEG-4 holds at most 8190 a side"):
        frames(8192)
    monkeypatch.setattr(demo, "show_video", lambda *_: frames(8192))
    assert show(project, "--image", project / "drive.mp4", project / "picture.png", "--out", tmp_path / "out") == 1
    assert "error: 1 of 2 inputs are not done:" in capfd.readouterr().err and "picture_gray.png" in names_in(tmp_path / "out")


def test_of_a_video_that_is_cut_short_the_frames_before_are_kept(project, frames, tmp_path, capfd):
    whole = write(tmp_path / "whole.avi", np.concatenate([frames] * 4), "MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    assert show(project, "--image", tmp_path / "cut.avi", "--out", tmp_path / "out", "--frames", 99) == 0
    kept = len(read(tmp_path / "out/cut_overlay.mp4")[0])
    assert 8 <= kept <= 13 and names_in(tmp_path / "out") == ["cut_overlay.mp4"]
    warning = f"{tmp_path}/cut.avi: states {(24 - kept) / RATE:.1f} seconds more than it has (trimmed, cut short or damaged?)"
    assert warning in capfd.readouterr().out
    assert show(project, "--image", tmp_path / "cut.avi", "--out", tmp_path / "out", "--frames", 2) == 0  # which are there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_video_is_a_whole_file_of_the_frames_so_far(project, frames, tmp_path, capsys, monkeypatch, number):
    predict, calls = Predictor.__call__, []

    def interrupted(self, image):
        calls.append(image)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return predict(self, image)

    monkeypatch.setattr(Predictor, "__call__", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a program of its own: a training here left another
    inputs = (project / "drive.mp4", project / "picture.png")
    assert show(project, "--image", *inputs, "--out", tmp_path) == 130
    assert len(read(tmp_path / "drive_overlay.mp4")[0]) == 3 and names_in(tmp_path) == ["drive_overlay.mp4"]
    said = capsys.readouterr()
    assert f"interrupted: {tmp_path}/drive_overlay.mp4 holds the first 3 frames of {inputs[0]}" in said.out
    assert said.err == "interrupted\n"


def test_a_video_interrupted_before_its_first_frame_leaves_nothing(project, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    (tmp_path / "drive_overlay.mp4").write_bytes(b"of an earlier run")
    assert show(project, "--image", project / "drive.mp4", "--out", tmp_path) == 130
    assert names_in(tmp_path) == ["drive_overlay.mp4"]
    assert (tmp_path / "drive_overlay.mp4").read_bytes() == b"of an earlier run"


def test_a_video_that_the_disk_does_not_take_is_named(project, frames, tmp_path, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # as a full disk: the write fails
    try:
        status = show(project, "--image", project / "drive.mp4", "--out", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and not names_in(tmp_path)
    assert f"error: {tmp_path}/drive_overlay.mp4: could not be written whole (is the disk full?)" in capfd.readouterr().err


def test_an_input_is_never_overwritten(project, tmp_path, capsys):
    (tmp_path / "drive_overlay.mp4").write_bytes(b"precious")
    (tmp_path / "drive.mp4").write_bytes((project / "drive.mp4").read_bytes())
    assert show(project, "--image", tmp_path, "--out", tmp_path) == 1
    assert f"{tmp_path}/drive_overlay.mp4 is one of the inputs and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "drive_overlay.mp4").read_bytes() == b"precious"


class Camera:
    """In the place of cv2.VideoCapture: frames half a second apart, of which the third is of another size; then `last()`."""

    def __init__(self, frames, clock, last):
        self.frames, self.clock, self.last = [frame[..., ::-1] for frame in frames], clock, last
        self.frames[2] = cv2.resize(self.frames[2], (W // 2, H // 2))

    def read(self):
        self.clock[0] += 0.5
        if not self.frames:
            self.last()
            return False, None
        return True, self.frames.pop(0)

    def get(self, key):
        return {cv2.CAP_PROP_FPS: 10.0}.get(key, -1.0)


@pytest.fixture
def camera(frames, monkeypatch):
    """A function: camera 0 gives the frames, then calls `last`."""
    monkeypatch.delenv("DISPLAY", raising=False)
    clock, capture = [1000.0], cv2.VideoCapture
    monkeypatch.setattr(demo.time, "time", lambda: clock[0])

    def plug_in(last):
        plugged = Camera(frames, clock, last)
        monkeypatch.setattr(cv2, "VideoCapture", lambda source, *api: plugged if source == 0 else capture(source, *api))

    return plug_in


def test_a_camera_is_written_at_the_speed_of_life_until_ctrl_c(project, frames, tmp_path, capsys, camera):
    camera(last=lambda: os.kill(os.getpid(), signal.SIGINT))
    assert show(project, "--image", 0, "--out", tmp_path, "--no-legend") == 0
    assert names_in(tmp_path) == ["camera_overlay.mp4"]
    frames = frames.copy()
    frames[2] = cv2.resize(cv2.resize(frames[2], (W // 2, H // 2)), (W, H), interpolation=cv2.INTER_AREA)
    times = [1, 4, 5, 5, 5, 5]  # at ten a second: the first is there at once, the next half a second later
    overlays = [seen for n, (_, seen) in zip(times, expected(project, frames)) for _ in range(n)]
    assert_shows(tmp_path / "camera_overlay.mp4", overlays, rate=10)
    assert "camera_overlay.mp4: 6 frames, " in capsys.readouterr().out


def test_a_camera_is_shown_in_a_window_where_there_is_a_screen_and_q_ends_it(project, tmp_path, monkeypatch, camera):
    seen = []
    for name, answer in (("namedWindow", None), ("imshow", None), ("waitKey", -1)):
        monkeypatch.setattr(cv2, name, lambda *words, name=name, answer=answer: seen.append(name) or answer)
    camera(last=lambda: None)
    assert show(project, "--image", 0, "--out", tmp_path) == 0 and not seen
    monkeypatch.setenv("DISPLAY", ":0")
    camera(last=lambda: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if seen.count("imshow") == 3 else -1)
    assert show(project, "--image", 0, "--out", tmp_path) == 0
    assert seen == ["namedWindow"] + 3 * ["imshow"] and len(read(tmp_path / "camera_overlay.mp4")[0]) == 10


def test_a_name_that_does_not_exist_is_refused_before_the_first_picture(project, tmp_path, capfd):
    assert show(project, "--image", project / "picture.png", tmp_path / "b.png", "--out", tmp_path / "out") == 1
    assert "b.png: no such picture" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_a_camera_that_is_not_there_is_named(project, tmp_path, capfd):
    assert show(project, "--image", 977, "--out", tmp_path) == 1
    said = capfd.readouterr().err
    assert said == (
        "error: 1 of 1 inputs are not done:\n"
        "camera 977: no frame comes from it (not connected, or another program uses it)\n"
    )


def test_the_legend_of_a_picture_names_what_is_in_it_largest_first(project, frames, tmp_path):
    assert show(project, "--image", project / "picture.png", "--out", tmp_path) == 0
    ids, seen = expected(project, frames[:1])[0]
    present, pixels = np.unique(ids, return_counts=True)
    order = present[np.argsort(-pixels)]
    assert len(set(pixels.tolist())) == len(pixels)
    strip = legend([NAMES[i] for i in order], PALETTE[order], (H, W))
    assert np.array_equal(Image.open(tmp_path / "picture_overlay.png"), below(seen, strip))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture_overlay.png"))[:H, :W], seen)
    patches = [color for row in strip.reshape(-1, 3).tolist() if (color := tuple(row)) in set(map(tuple, PALETTE.tolist()))]
    assert list(dict.fromkeys(patches)) == [tuple(PALETTE[i].tolist()) for i in order]
