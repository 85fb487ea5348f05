import csv
import html
import json
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

from tool import test as program
from util.config import ROOT
from util.metric import scores
from util.report import Example, build_report, confusion_picture, confusions, error_map, write_confusion
from util.visual import default_palette, save_png

NAMES = ["road", "sky & <clouds>", "traffic light"]
PALETTE = np.uint8([[200, 0, 200], [0, 190, 210], [120, 220, 0]])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The folder of a scored test of nine images, image 8 the hardest and image 0 the best."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(9):
        label = np.repeat([0, 1, 2], 30)[None].repeat(60, 0).astype(np.uint8)
        pred = label.copy()
        pred[: 5 * i] = 2
        label[:, :3] = 255
        save_png(root / f"image/näme {i}.png", rng.integers(0, 256, (60, 90, 3)).astype(np.uint8))
        save_png(root / f"label/{i}.png", label)
        save_png(root / f"out/gray/näme {i}.png", pred)
        lines.append(f"image/näme {i}.png\tlabel/{i}.png")
    (root / "val.txt").write_text("\n".join(lines), encoding="utf-8")
    (root / "names.txt").write_text("\n".join(NAMES))
    (root / "colors.txt").write_text("\n".join(" ".join(map(str, colour)) for colour in PALETTE.tolist()))
    config = {
        "DATA": {"data_root": str(root), "classes": 3},
        "TRAIN": {"save_path": str(root / "model")},
        "TEST": {"test_list": str(root / "val.txt"), "save_folder": str(root / "out"), "has_prediction": True,
                 "boundary_iou": True, "names_path": str(root / "names.txt"), "colors_path": str(root / "colors.txt")},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    assert program.main(["--config", str(root / "config.yaml")]) == 0
    return root / "out"


def test_the_page_holds_every_number_and_the_protocol(result):
    page = (result / "report.html").read_text(encoding="utf-8")
    found = json.loads((result / "result.json").read_text(encoding="utf-8"))
    for key in ("mIoU", "mAcc", "allAcc", "fwIoU", "boundary_mIoU"):
        assert f"{found[key]:.4f}" in page and 0 < found[key] < 1
    for row in found["classes"]:
        assert html.escape(row["name"]) in page
        assert all(f"{row[key]:.4f}" in page for key in ("iou", "accuracy", "recall", "precision", "dice", "boundary_iou"))
    assert "<clouds>" not in page and f"<dd>{found['protocol']['list']}</dd>" in page


def test_the_page_needs_no_network_no_script_and_little_space(result):
    page = (result / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "default-src 'none'" in page and len(page) < 3e6
    assert "http" not in page.replace("http-equiv", "")
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|srcset)="([^"]*)"', page))


def test_the_hardest_images_come_first_and_link_to_overlays_that_exist(result):
    page = (result / "report.html").read_text(encoding="utf-8")
    hardest, best = page.split("<h2>Best images</h2>")
    assert re.findall(r'<article><h3><a href="[^"]*">näme (\d)</a>', hardest) == ["8", "7", "6", "5", "4", "3"]
    assert re.findall(r'<article><h3><a href="[^"]*">näme (\d)</a>', best) == ["0", "1", "2"]
    assert page.count("<figure>") == 9 * 4 and "of the pixels are sky &amp; &lt;clouds&gt; taken for traffic light" in page
    links = re.findall(r'<li><a href="([^"]*)">', page)
    assert len(links) == 9 and links[0] == "overlay/n%C3%A4me%208.jpg"
    assert all(Image.open(result / unquote(link)).size == (90, 60) for link in links)


def test_the_confusion_matrix_is_written_with_its_names(result):
    with (result / "confusion.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label \\ prediction", *NAMES] and [row[0] for row in rows[1:]] == NAMES
    counts = np.array([row[1:] for row in rows[1:]], int)
    found = json.loads((result / "result.json").read_text(encoding="utf-8"))
    assert scores(counts).mIoU == found["mIoU"] and counts.sum() == 9 * 60 * 87
    assert Image.open(result / "confusion.png").mode == "RGB"


def test_predictions_of_no_class_have_a_column_only_if_there_are_some(tmp_path):
    for last, columns in ((0, ["a", "b"]), (7, ["a", "b", "(none)"])):
        confusion = np.array([[5, 1, 0], [0, 2, last]])
        write_confusion(tmp_path / "c.csv", confusion, ["a", "b"])
        assert (tmp_path / "c.csv").read_text().splitlines()[0] == ",".join(["label \\ prediction", *columns])
    assert confusions(confusion, ["a", "b"]) == [(7 / 9, "b", "(none)"), (1 / 6, "a", "b")]


@pytest.mark.parametrize("K", [2, 19, 150])
@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_shows_shares_of_rows_in_cells_that_can_be_read(K, dark):
    confusion = np.diag(np.full(K, 50))
    confusion[0, 1], confusion[1] = 150, 0
    names = [f"class number {i}" for i in range(K)]
    picture = confusion_picture(confusion, names, dark).astype(int)
    cell = int(np.clip(1500 // K, 12, 44))
    left = picture.shape[1] - 13 - cell * K if K > 2 else None
    assert cell >= 12 and max(picture.shape) < 2200
    back = picture[0, 0]
    blue, orange = ((picture[..., c] - picture[..., 2 - c] > 60) for c in (2, 0))
    assert blue.sum() > 0.5 * cell**2 * (K - 2)  # the diagonal but for row 0, a quarter right, and row 1, without labels
    assert 0.5 * cell**2 < orange.sum() <= cell**2
    if left is not None:
        y, x = np.argwhere(orange).mean(0)
        assert abs(x - (left + 1.5 * cell)) < 2 and abs(y - (left + 0.5 * cell)) < 2
    assert (back < 40).all() if dark else (back == 255).all()


def test_long_names_and_names_of_other_alphabets_do_not_break_the_picture():
    picture = confusion_picture(np.eye(3, dtype=int), ["é" * 80, "道路", ""])
    assert picture.shape[0] < 600 and picture.dtype == np.uint8


def test_the_error_map_marks_wrong_and_ignored_pixels():
    image = np.full((1, 3, 3), 100, np.uint8)
    right, wrong, ignored = error_map(image, np.uint8([[1, 1, 255]]), np.uint8([[1, 0, 0]]))[0].tolist()
    assert right == [190, 190, 190] and ignored == [47, 47, 47] and wrong[0] > 2 * wrong[1] > 4 * wrong[2]


def test_a_page_of_150_classes_and_large_images_stays_small():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 150, (16, 32)).repeat(32, 0).repeat(32, 1)
    image = rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8)  # noise: the worst for any compression
    example = Example("x", 0.5, image, label, np.roll(label, 9, 1), "overlay/x.jpg")
    confusion = rng.integers(0, 10**6, (150, 150))
    page = build_report("t", scores(confusion), None, confusion, [f"class {i}" for i in range(150)], default_palette(150), {},
                        [example] * 6, [example] * 3, [])  # fmt: skip
    assert len(page) < 3e6, len(page)


def test_images_without_labels_are_neither_hard_nor_easy(result, tmp_path):
    save_png(tmp_path / "void.png", np.full((60, 90), 255, np.uint8))
    (tmp_path / "val.txt").write_text(f"image/näme 0.png\t{tmp_path / 'void.png'}\n", encoding="utf-8")
    shutil.copytree(result / "gray", tmp_path / "gray")
    words = ["test_list", tmp_path / "val.txt", "save_folder", tmp_path]
    assert program.main(["--config", str(result.parent / "config.yaml"), *map(str, words)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>-<small>" in page and "<article>" not in page


def chromium(folder, *words):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
               f"--user-data-dir={folder}", *words]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(not CHROMIUM, reason="needs the browser Chromium: apt-get install chromium")
def test_a_browser_shows_the_pages_numbers_and_pictures(result, tmp_path):
    url = (result / "report.html").as_uri()
    dom = chromium(tmp_path / "a", "--dump-dom", url)
    found = json.loads((result / "result.json").read_text(encoding="utf-8"))
    assert f"<h1>{found['mIoU']:.4f}<small>mIoU</small></h1>" in dom and dom.count("<figure>") == 9 * 4
    for dark, back in ((False, [255, 255, 255]), (True, [24, 26, 30])):
        shot = tmp_path / f"{dark}.png"
        words = [f"--screenshot={shot}", "--window-size=1280,4000", *(["--force-dark-mode"] if dark else []), url]
        chromium(tmp_path / f"b{dark}", *words)
        pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
        assert pixels[0, 0].tolist() == back
        for colour in PALETTE.astype(int):  # of labels and predictions, which cover far more than the chips in the table
            assert (np.abs(pixels - colour).max(-1) <= 2).sum() > 100_000
        orange = (pixels[..., 0] > 140) & (pixels[..., 1] < 0.5 * pixels[..., 0]) & (pixels[..., 2] < 40)
        assert orange.sum() > 50_000  # of the error maps


def test_several_processes_write_the_same_scores_and_report(result, tmp_path):
    shutil.copytree(result / "gray", tmp_path / "gray")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "tool/test.py"),
             "--config", str(result.parent / "config.yaml"), "save_folder", str(tmp_path)]  # fmt: skip
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=300)
    for name in ("result.json", "report.html"):
        one, two = ((folder / name).read_text(encoding="utf-8") for folder in (result, tmp_path))
        assert one.replace(f"{result}", "") == two.replace(f"{tmp_path}", ""), name
