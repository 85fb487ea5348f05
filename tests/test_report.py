import csv
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

from tool import test as program
from util.config import ROOT
from util.log import build_logger
from util.metric import scores, table
from util.report import LONG, Example, Result, error_map, log_result, write_images, write_report, write_result
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
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))


def test_the_hardest_images_come_first_and_link_to_overlays_that_exist(result):
    page = (result / "report.html").read_text(encoding="utf-8")
    hardest, best = page.split("<h2>Best images</h2>")
    assert re.findall(r'<article><h3><a href="[^"]*">näme (\d)</a>', hardest) == ["8", "7", "6", "5", "4", "3"]
    assert re.findall(r'<article><h3><a href="[^"]*">näme (\d)</a>', best) == ["0", "1", "2"]
    assert page.count("<figure>") == 9 * 4
    assert "of the labelled pixels are sky &amp; &lt;clouds&gt; taken for traffic light" in page
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


def read_images(folder):
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_scores_of_every_image_are_written_in_the_order_of_the_list(result):
    head, *rows = read_images(result)
    assert head == ["image", "mIoU", "allAcc", *(f"IoU {name}" for name in NAMES)]
    assert [row[0] for row in rows] == [f"näme {i}" for i in range(9)]
    for i, row in enumerate(rows):  # the first 5 i of 60 lines are predicted as class 2
        right = 60 - 5 * i
        iou = [right / 60, right / 60, 60 * 30 / (60 * 30 + 5 * i * 57)]
        expected = [np.mean(iou), (right * 57 + 5 * i * 30 + right * 30) / (60 * 87), *iou]
        assert [float(cell) for cell in row[1:]] == [round(value, 6) for value in expected]
    page = (result / "report.html").read_text(encoding="utf-8")
    assert all(f"näme {i}</a> <b>{float(row[1]):.4f}</b>" in page for i, row in enumerate(rows))


def test_a_class_without_labels_in_an_image_has_an_empty_cell_and_names_are_quoted(tmp_path):
    names, nan = ['a "b", c', "道路\nx", "ok"], float("nan")
    write_images(tmp_path, names, [("x, y/1", np.array([0.5, 1 / 3, 1.0, nan, 0.0])), ("z", np.full(5, nan))])
    head, *rows = read_images(tmp_path)
    assert head[3:] == [f"IoU {name}" for name in names]
    assert rows == [["x, y/1", "0.5", "0.333333", "1.0", "", "0.0"], ["z", "", "", "", "", ""]]


class Cells(HTMLParser):
    """The cells of the confusion matrix: [(tag, attributes, text)] of each row. End tags of cells and rows may be left out."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.inside = "matrix" in (attrs.get("class") or "") if tag == "table" else self.inside
        if self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag in ("td", "th"):
            self.rows[-1].append((tag, attrs, ""))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "table"

    def handle_data(self, data):
        if self.inside and self.rows and self.rows[-1]:
            tag, attrs, text = self.rows[-1][-1]
            self.rows[-1][-1] = tag, attrs, text + data.strip()


def result_of(confusion, names=None, title="t", **protocol):
    """A `Result` of a (K, K + 1) confusion matrix, without contours."""
    K = len(confusion)
    return Result(
        title, names or [f"class {i}" for i in range(K)], default_palette(K), 255, np.array(confusion), None, protocol
    )


def page_of(folder, result, examples=()):
    write_report(folder, result, examples)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_predictions_of_no_class_have_a_column_only_if_there_are_some(tmp_path):
    for last, columns in ((0, ["a", "b"]), (7, ["a", "b", "(none)"])):
        result = result_of([[5, 1, 0], [0, 2, last]], ["a", "b"])
        write_result(tmp_path, result)
        assert (tmp_path / "confusion.csv").read_text().splitlines()[0] == ",".join(["label \\ prediction", *columns])
        page = page_of(tmp_path, result)
        assert [text for _, _, text in Cells(page).rows[0][1:]] == columns
    assert re.findall(r"<li><b>(.*?)</b> of <i>(.*?)</i> taken for <i>(.*?)</i>", page) == [("77.8%", "b", "(none)"),
                                                                                          ("16.7%", "a", "b")]  # fmt: skip


def test_cells_of_the_confusion_hold_per_cent_of_their_row_and_are_as_strong_as_its_root(tmp_path):
    head, first, second, third = Cells(page_of(tmp_path, result_of([[60, 36, 4, 0], [0, 0, 0, 0], [0, 0, 8, 0]]))).rows
    assert [text for _, _, text in first] == ["class 0", "60", "36", "4"]
    assert [cell[1].get("style") for cell in first[1:]] == ["--s:0.77", "--s:0.60", "--s:0.20"]
    assert [cell[1].get("class") for cell in first[1:]] == ["r", None, None]  # right on the diagonal
    assert first[2][1]["title"] == "class 0 taken for class 1: 36.0%"
    assert [text for _, _, text in second] == ["class 1", "", "", ""] and [text for _, _, text in third][1:] == ["", "", "100"]
    assert all(cell[0] == "th" and cell[1]["scope"] == "col" for cell in head[1:])
    assert all(row[0][0] == "th" and row[0][1]["scope"] == "row" for row in (first, second, third))


@pytest.mark.parametrize("K", [1, 2, 30, 31, 150])
def test_a_report_of_any_number_of_classes_has_a_cell_for_each_pair_and_no_nan(K, tmp_path):
    confusion = np.random.default_rng(K).integers(0, 1000, (K, K + 1))
    confusion[:, K] = 0
    for counts in (confusion, 0 * confusion):
        result = result_of(counts)
        write_result(tmp_path, result)
        page = page_of(tmp_path, result)
        assert [len(row) for row in Cells(page).rows] == [K + 1] * (K + 1)
        cells = [cell for row in Cells(page).rows[1:] for cell in row[1:]]
        assert any(text for _, _, text in cells) == (counts.any() and K <= 30)
        assert len(page) < 2.5e6
        for name in ("report.html", "result.md", "result.json", "confusion.csv"):
            assert "nan" not in (tmp_path / name).read_text(encoding="utf-8").lower()
        assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["mIoU"] == (
            result.scores.mIoU if counts.any() else None
        )


def test_markup_in_names_and_protocol_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&\'|'
    label = np.zeros((4, 4), np.uint8)
    example = Example(f"a/{evil}", 0.5, lambda: (np.zeros((4, 4, 3), np.uint8), label, 1 - label))
    result = result_of([[0, 16, 0], [0, 0, 0]], [evil, "ok"], title=evil, **{evil: [evil]})
    page = page_of(tmp_path, result, [example])
    assert "<script" not in page and page.count(html.escape(evil)) > 8
    assert Cells(page).rows[1][2][1]["title"] == f"{evil} taken for ok: 100.0%"  # quotes do not end the attribute
    write_result(tmp_path, result)
    assert "| 0 | \\<script>" in (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "| 0 | two lines | 1.0" in table(scores(np.eye(1, dtype=np.int64)), ["two\n lines"], markdown=True)
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["classes"][0]["name"] == evil


def test_the_error_map_marks_wrong_and_ignored_pixels():
    image = np.full((1, 3, 3), 100, np.uint8)
    tall = np.random.default_rng(0).integers(0, 255, (600, 2, 3), np.uint8)  # it is computed in strips
    ids = tall[..., 0] % 3
    whole = error_map(tall, ids, ids % 2)
    assert all(
        np.array_equal(whole[i : i + 1], error_map(tall[i : i + 1], ids[i : i + 1], ids[i : i + 1] % 2)) for i in range(600)
    )
    right, wrong, ignored = error_map(image, np.uint8([[1, 1, 255]]), np.uint8([[1, 0, 0]]))[0].tolist()
    assert right == [190, 190, 190] and ignored == [47, 47, 47] and wrong[0] > 2 * wrong[1] > 4 * wrong[2]


def test_a_page_of_150_classes_and_large_images_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 150, (16, 32)).repeat(32, 0).repeat(32, 1)
    image = rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8)  # noise: the worst for any compression
    examples = [Example(str(i), 0.5, lambda: (image, label, np.roll(label, 9, 1))) for i in range(9)]
    page = page_of(tmp_path, result_of(rng.integers(0, 10**6, (150, 151))), examples)
    assert page.count("<article>") == 9 and len(page) < 3e6, len(page)


def test_an_overlay_is_no_wider_than_a_jpeg_can_be(tmp_path):
    label = np.zeros((2, 65510), np.uint8)
    example = Example("a", 0.5, lambda: (np.zeros((2, 65510, 3), np.uint8), label, label))
    page_of(tmp_path, result_of(np.eye(3, 4, dtype=int)), [example])
    assert Image.open(next(tmp_path.glob("**/a.jpg"))).size == (65500, 2)


@pytest.mark.parametrize("screen", [">&- 2>&-", "| head -1", "> /dev/full 2>&1", "LC_ALL=C PYTHONUTF8=0"])
def test_a_test_finishes_and_writes_its_report_whatever_its_screen_is(screen, result, tmp_path):
    """Closed, full, gone after the first line, or of a character set without the names of the classes."""
    names = ["Straße", "道路", "<script>"]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    line = f"{sys.executable} {ROOT}/tool/test.py --config {result.parent}/config.yaml test_list {tmp_path}/val.txt"
    line += f" save_folder {tmp_path} names_path {tmp_path}/names.txt"
    (tmp_path / "gray").mkdir()
    rows = []
    for i in range(3):
        shutil.copy(result / f"gray/näme {i}.png", tmp_path / f"gray/{i}.png")
        shutil.copy(result.parent / f"image/näme {i}.png", tmp_path / f"{i}.png")
        rows.append(f"{tmp_path}/{i}.png\tlabel/{i}.png")
    (tmp_path / "val.txt").write_text("\n".join(rows), encoding="utf-8")
    line = f"{screen} {line}" if "=" in screen else f"{line} {screen}"
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(html.escape(name) in page for name in names) and "<script" not in page
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in found["classes"]] == names
    assert all(name in (tmp_path / "confusion.csv").read_text(encoding="utf-8") for name in names)
    (log,) = tmp_path.glob("test-*.log")
    text = log.read_text(encoding="utf-8")
    assert "End Evaluation" in text and all(text.count(name) == 1 for name in names), text


def test_images_without_labels_are_neither_hardest_nor_best(result, tmp_path):
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
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


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
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=600)
    for name in ("result.json", "report.html", "images.csv"):
        one, two = ((folder / name).read_text(encoding="utf-8") for folder in (result, tmp_path))
        assert one.replace(f"{result}", "") == two.replace(f"{tmp_path}", ""), name


def test_the_protocol_on_the_screen_is_short_and_in_the_log_file_whole(result, tmp_path, capsys):
    protocol = json.loads((result / "result.json").read_text(encoding="utf-8"))["protocol"]
    protocol |= dict.fromkeys(LONG, "x" * 300) | {"scales": [1.0]}
    log = build_logger(tmp_path / "a.log")
    log_result(log, Result("t", ["a"], PALETTE[:1], 255, np.array([[4, 0]]), None, protocol))
    screen = capsys.readouterr().out
    assert "Protocol: " in screen and "scales [1.0]" in screen and max(map(len, screen.splitlines())) < 300
    assert all(f"{key} {value}" in (tmp_path / "a.log").read_text() for key, value in protocol.items())
