"""Annotations of labelme, COCO and YOLO: label maps drawn from them, and the messages for files with faults."""

import base64
import json
import unicodedata

import cv2
import numpy as np
import pytest

from dataset.polygons import _coco_object, fill, polygons
from tool import prepare
from util.common import Mistake
from util.dataset import read_list
from util.image import read_label, read_lines
from util.log import report_errors
from util.visual import save_png

SIZE = 48, 64
NAMES = ("road", "car", "sky")


def scene(seed):
    """A label map of three classes with compact shapes; 0 is what no polygon covers."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SIZE, np.uint8)
    label[30:] = 1
    cv2.ellipse(label, (int(rng.integers(12, 52)), 30), (9, 6), int(rng.integers(180)), 0, 360, 2, -1)
    label[:10, 5:50] = 3
    return label


def contours(label):
    """[(name, (N, 2) float)], the outlines through the centres of border pixels."""
    for k, name in enumerate(NAMES, 1):
        for contour in cv2.findContours(np.uint8(label == k), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
            yield name, contour[:, 0] + 0.5


def picture(path):
    save_png(path, np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": np.array(points, float).tolist(), "shape_type": kind, "group_id": None, **more}


def labelme(path, shapes, image=None, size=SIZE):
    content = {"imagePath": image or f"{path.stem}.png", "imageData": None, "imageHeight": size[0], "imageWidth": size[1]}
    path.write_text(json.dumps(content | {"version": "5.5.0", "flags": {}, "shapes": shapes}))


CAR = [(0, "car", [[1, 1, 9, 1, 9, 9]], {})]  # as `coco` takes it


def coco(path, annotations, images=("a.png", "b.png"), names=NAMES):
    """annotations: [(number of the image, name, segmentation, more)]; ids have gaps and any order."""
    content = {
        "images": [{"id": 7 * i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(images)],
        "categories": [{"id": 10 * k + 4, "name": name} for k, name in [*enumerate(names)][::-1]],
        "annotations": [{"id": n, "image_id": 7 * i, "category_id": 10 * names.index(name) + 4, "segmentation": what} | more
                        for n, (i, name, what, more) in enumerate(annotations)],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def as_labelme(root, scenes):
    for name, label in scenes.items():
        labelme(root / f"{name}.json", [shape(*thing) for thing in contours(label)])
    return [root]


def as_coco(root, scenes):
    found = [
        (i, name, [points.ravel().tolist()], {}) for i, label in enumerate(scenes.values()) for name, points in contours(label)
    ]
    coco(root / "annotations.json", found, [f"{name}.png" for name in scenes])
    return [root / "annotations.json"]


def as_yolo(root, scenes):
    for name, label in scenes.items():
        rows = [f"{NAMES.index(thing)} {' '.join(map(str, (p / SIZE[::-1]).ravel()))}\n" for thing, p in contours(label)]
        (root / f"{name}.txt").write_text("".join(rows))
    (root / "data.yaml").write_text(f"names: [{', '.join(NAMES)}]\ntrain: .\nval: .\n")
    return [root / "data.yaml"]


def run(*args):
    return report_errors(lambda: prepare.main(["folder", *map(str, args)]))


@pytest.fixture
def mine(tmp_path):
    """A folder with two pictures, and the words that prepare it with what is in it."""
    root = tmp_path / "mine"
    for name in ("a", "b"):
        picture(root / f"{name}.png")
    return root


def label_of(out, name):
    """The prepared label of an image, and the class names."""
    pairs = [pair for split in ("train", "val") for pair in read_list(out / f"list/{split}.txt", out, split)]
    return read_label(next(label for image, label in pairs if image.endswith(f"{name}.png")))


@pytest.mark.parametrize("write", [as_labelme, as_coco, as_yolo])
def test_polygons_of_label_maps_give_the_label_maps(tmp_path, write):
    scenes = {f"{k}": scene(k) for k in range(6)}
    for name in scenes:
        picture(tmp_path / "mine" / f"{name}.png")
    paths = write(tmp_path / "mine", scenes)
    out = tmp_path / "out"
    assert run("--polygons", *paths, "--out", out, "--names", names_file(tmp_path)) == 0
    assert read_lines(out / "out_names.txt") == ["background", *NAMES]
    for name, label in scenes.items():
        around = np.pad(label, 1, constant_values=9)  # the border of the picture is one too
        border = (cv2.dilate(around, np.ones((3, 3))) != cv2.erode(around, np.ones((3, 3))))[1:-1, 1:-1]
        found = label_of(out, name)
        assert (found == label)[~border].all() and (~border).mean() > 0.3
        assert (found != label).mean() < 0.06


def names_file(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path / "names.txt"


# ---- drawing


def filled(points, size=SIZE):
    rows, columns, mask = fill(np.array(points, float), *size)
    whole = np.zeros(size, bool)
    whole[rows, columns] = mask
    return whole


def test_a_pixel_belongs_to_a_polygon_if_its_centre_does():
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    for _ in range(50):
        polygon = rng.uniform(-20, 80, (rng.integers(3, 12), 2))
        inside = np.zeros(SIZE, bool)
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0)):
            inside ^= ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        assert (filled(polygon) == inside).all()


def test_whole_numbers_are_borders_of_pixels():
    assert np.argwhere(filled([(2, 3), (5, 3), (5, 4), (2, 4)])).tolist() == [[3, 2], [3, 3], [3, 4]]


def test_polygons_with_a_common_edge_leave_no_gap_and_share_no_pixel():
    rng = np.random.default_rng(1)
    for _ in range(20):
        middle = [(x, y) for x, y in zip(rng.uniform(5, 60, 5), np.linspace(-1, 49, 5))]
        left, right = [(-1, -1), *middle, (-1, 49)], [(65, -1), *middle, (65, 49)]
        assert (filled(left).astype(int) + filled(right) == 1).all()


def test_polygons_agree_with_pycocotools_but_for_the_border():
    mask = pytest.importorskip("pycocotools.mask")
    angle = np.sort(np.random.default_rng(2).uniform(0, 2 * np.pi, 9))
    points = np.stack([30 + 25 * np.cos(angle), 24 + 20 * np.sin(angle)], 1)
    theirs = mask.decode(mask.frPyObjects([points.ravel().tolist()], *SIZE))[..., 0]
    border = cv2.dilate(theirs, np.ones((3, 3))) != cv2.erode(theirs, np.ones((3, 3)))
    assert (filled(points) == theirs)[~border].all() and (filled(points) != theirs).mean() < 0.02


# ---- labelme


def test_labelme_shapes_are_drawn_in_their_order_and_lines_are_left_out(mine, tmp_path, capsys):
    mask = base64.b64encode(cv2.imencode(".png", np.uint8([[0, 1], [1, 1]]))[1]).decode()
    labelme(mine / "a.json", [
        shape("car", [(0, 0), (20, 0), (20, 20), (0, 20)]), shape("road", [(30, 25), (10, 5)], "rectangle"),
        shape("sky", [(50, 20), (50, 28)], "circle"), shape("car", [(1, 1), (5, 5)], "line"),
        shape("__ignore__", [(0, 40), (64, 40), (64, 48), (0, 48)]), shape("_background_", [(0, 0), (4, 0), (4, 4), (0, 4)]),
        shape("road", [(40, 2), (41, 3)], "mask", mask=mask), shape("road", [(2, 30), (8, 30), (8, 36), (2, 36)], "rectangle"),
    ])  # fmt: skip
    labelme(mine / "b.json", [shape("void", [(0, 0), (64, 0), (64, 9), (0, 9)])])
    assert run("--polygons", mine, "--out", tmp_path / "out") == 0
    assert read_lines(tmp_path / "out/out_names.txt") == ["background", "car", "road", "sky"]
    label = label_of(tmp_path / "out", "a")
    assert label[4, 2] == 1 and label[6, 12] == 2 and label[24, 29] == 2 and label[24, 31] == 0 and label[2, 2] == 0
    assert label[13, 50] == 3 and label[11, 50] == 0 and (label == 3).sum() == pytest.approx(np.pi * 64, rel=0.05)
    assert (label[40:] == 255).all() and label[2, 40:43].tolist() == [0, 2, 0] and label[3, 40:43].tolist() == [2, 2, 0]
    assert label[33, 5] == 2 and label[33, 9] == 0
    assert (label_of(tmp_path / "out", "b")[:9] == 255).all() and (label_of(tmp_path / "out", "b")[9:] == 0).all()
    assert "left out: 1 of shape line, which have no area" in capsys.readouterr().out


def test_files_of_hidden_folders_are_no_annotations_and_the_suffix_may_be_in_capitals(mine, tmp_path):
    labelme(mine / "a.json", [shape("car", [(0, 0), (9, 0), (9, 9)])])
    labelme(mine / "b.JSON", [shape("road", [(0, 0), (9, 0), (9, 9)])])
    (mine / ".editor/backup").mkdir(parents=True)
    (mine / ".editor/settings.json").write_text("{}")
    labelme(mine / ".editor/backup/a.json", [])
    (mine / "readme.txt").write_text("0 0 0 1 0 1 1")
    assert run("--polygons", mine, "--out", tmp_path / "out") == 0
    assert read_lines(tmp_path / "out/out_names.txt") == ["background", "car", "road"]
    assert (label_of(tmp_path / "out", "a") == 1).any() and (label_of(tmp_path / "out", "b") == 2).any()


@pytest.mark.parametrize("x, y, fits", [(62, 46, True), (63, 46, False), (62, 47, False), (-1, 0, False), (0, -1, False)])
def test_a_mask_of_labelme_may_touch_the_border_and_not_cross_it(mine, tmp_path, capsys, x, y, fits):
    mask = base64.b64encode(cv2.imencode(".png", np.ones((2, 2), np.uint8))[1]).decode()
    labelme(mine / "a.json", [shape("car", [(x, y), (x + 2, y + 2)], "mask", mask=mask)])
    labelme(mine / "b.json", [])
    assert run("--polygons", mine, "--out", tmp_path / "out") == (0 if fits else 1)
    if fits:
        assert np.argwhere(label_of(tmp_path / "out", "a")).tolist() == [[46, 62], [46, 63], [47, 62], [47, 63]]
    else:
        assert "a.json: shapes[0] (car): its `mask` reaches out of the picture" in capsys.readouterr().err


def test_background_void_ignores_what_no_polygon_covers(mine, tmp_path):
    for name in ("a", "b"):
        labelme(
            mine / f"{name}.json", [shape("car", [(0, 0), (20, 0), (20, 20)]), shape("sky", [(30, 30), (40, 30), (40, 40)])]
        )
    assert run("--polygons", mine, "--out", tmp_path / "out", "--background", "void") == 0
    label = label_of(tmp_path / "out", "a")
    assert read_lines(tmp_path / "out/out_names.txt") == ["car", "sky"] and set(np.unique(label)) == {0, 1, 255}


def test_background_takes_the_place_that_the_names_give_it(mine, tmp_path):
    for name in ("a", "b"):
        labelme(mine / f"{name}.json", [shape("car", [(0, 0), (20, 0), (20, 20)])])
    (tmp_path / "names.txt").write_text("car\nfield\n")
    assert run("--polygons", mine, "--out", tmp_path / "out", "--background", "field", "--names", tmp_path / "names.txt") == 0
    assert read_lines(tmp_path / "out/out_names.txt") == ["car", "field"]
    assert label_of(tmp_path / "out", "a")[40, 0] == 1


def test_labelme_files_in_a_folder_of_their_own_find_their_images(tmp_path, capsys):
    for split, name in (("train", "a"), ("val", "b")):
        picture(tmp_path / "photos" / split / f"{name}.png")
        (tmp_path / "json" / split).mkdir(parents=True)
        labelme(
            tmp_path / "json" / split / f"{name}.json", [shape("car", [(0, 0), (9, 0), (9, 9)])], f"..\\..\\old\\{name}.png"
        )
    picture(tmp_path / "photos/train/c.png")
    assert run("--images", tmp_path / "photos", "--polygons", tmp_path / "json", "--out", tmp_path / "out") == 0
    assert "1 images without a JSON file are left out" in capsys.readouterr().out
    assert (tmp_path / "out/list/val.txt").read_text() == "image/val/b.png label/val/b.png\n"


def test_an_image_of_the_same_name_in_another_folder_than_the_stated_one_is_not_taken(tmp_path, capsys):
    for name in ("b/1", "b/2", "c/2", "c/4"):
        picture(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "json").mkdir()
    for name, image in (("1", "..\\photos\\a\\1.png"), ("2", "/old/photos/c/2.png"), ("4", "C:\\old\\4.png")):
        labelme(tmp_path / "json" / f"{name}.json", [shape("car", [(0, 0), (9, 0), (9, 9)])], image)
    args = "--images", tmp_path / "photos", "--polygons", tmp_path / "json", "--out", tmp_path / "out"
    assert run(*args) == 1
    assert "json/1.json: its image ..\\photos\\a\\1.png is not in" in capsys.readouterr().err
    assert run(*args, "--skip-bad") == 0
    assert sorted(read_lines(tmp_path / "out/list/trainval.txt")) == [f"image/c/{n}.png label/c/{n}.png" for n in (2, 4)]
    assert "1 images found by their name alone" in capsys.readouterr().out


def test_a_labelme_file_in_a_folder_like_its_images_takes_that_image_and_not_one_of_its_name_in_the_root(tmp_path):
    for name in ("1", "holiday/1", "2"):
        picture(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "json/holiday").mkdir(parents=True)
    for name, corner in (("holiday/1", 9), ("2", 30)):
        labelme(tmp_path / "json" / f"{name}.json", [shape("car", [(0, 0), (corner, 0), (corner, 9)])], f"{name[-1]}.png")
    assert run("--images", tmp_path / "photos", "--polygons", tmp_path / "json", "--out", tmp_path / "out") == 0
    assert sorted(read_lines(tmp_path / "out/list/trainval.txt")) == [
        f"image/{name}.png label/{name}.png" for name in ("2", "holiday/1")
    ]


def test_of_images_whose_stated_folder_is_gone_one_in_the_root_is_taken_and_none_of_two(tmp_path, capsys):
    for name in ("1", "a/x/2", "b/x/2"):
        picture(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "json").mkdir()
    for name, image in (("1", "old/1.png"), ("2", "old/x/2.png")):
        labelme(tmp_path / "json" / f"{name}.json", [shape("car", [(0, 0), (9, 0), (9, 9)])], image)
    assert run("--images", tmp_path / "photos", "--polygons", tmp_path / "json", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "json/2.json: its image old/x/2.png is not in" in error and "1 of 2 samples" in error


LABELME_FAULTS = {
    "wholly outside": (shape("car", [(64, 5), (90, 5), (90, 9)]), "shapes[0] (car): its points (64..90 x 5..9) lie outside"),
    "wholly above": (shape("car", [(5, -9), (9, -9), (9, 0)]), "shapes[0] (car): its points (5..9 x -9..0) lie outside"),
    "far outside": (shape("car", [(0, 0), (9, 0), (9e9, 9)]), "shapes[0] (car): its points (0..9e+09 x 0..9) lie outside"),
    "far to the left": (shape("car", [(0, 0), (9, 0), (-9e9, 9)]), "its points (-9e+09..9 x 0..9) lie outside"),
    "two points": (shape("car", [(0, 0), (9, 0)]), "shapes[0] (car): 2 points, expected 3 or more"),
    "nan": (shape("car", [(0, 0), (9, 0), (float("nan"), 2)]), "shapes[0] (car): a coordinate is not a finite number"),
    "no pairs": (shape("car", [(0, 0, 1), (9, 0, 1), (9, 9, 1)]), "shapes[0] (car): its points are [["),
    "text": ({"label": "car", "points": "zero"}, "shapes[0] (car): its points are 'zero', expected pairs of numbers"),
    "unknown class": (
        shape("cra", [(0, 0), (9, 0), (9, 9)]),
        "'cra' is no class (did you mean car?); there are background, road, car, sky; what is named void is ignored",
    ),
    "unknown shape": (shape("car", [(0, 0)], "spline"), "shapes[0] (car): shape_type 'spline'; expected one of polygon"),
    "no shape": ({"points": []}, "a.json: shapes[0] has no label"),
    "no mask": (shape("car", [(0, 0), (1, 1)], "mask", mask="!"), "shapes[0] (car): its `mask` is not a PNG in base64"),
}


@pytest.mark.parametrize("fault, message", LABELME_FAULTS.values(), ids=LABELME_FAULTS)
def test_a_fault_of_labelme_is_named_with_file_and_shape(mine, tmp_path, capsys, fault, message):
    labelme(mine / "a.json", [fault])
    labelme(mine / "b.json", [])
    args = "--polygons", mine, "--out", tmp_path / "out", "--names", names_file(tmp_path)
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert f"{mine}/a.json" in error and message in error and "1 of 2 samples" in error and "Traceback" not in error
    assert not (tmp_path / "out/list").exists()


@pytest.mark.parametrize("content, message", [
    ("{", "cannot be read as JSON"), ("[" * 100000, "cannot be read as JSON"), ("[1]", "expected a mapping with `shapes`"),
    ('{"shapes": 7}', "not a file of labelme"), ('{"shapes": [], "imageHeight": -1, "imageWidth": 4}', "height -1 and width 4"),
    ('{"shapes": [], "imageHeight": 96, "imageWidth": 128}', "128 x 96, but its image"),
    ('{"shapes": [], "imagePath": "gone.png"}', "b.json: its image gone.png is not in"),
])  # fmt: skip
def test_a_file_that_is_not_of_labelme_is_named(mine, tmp_path, capsys, content, message):
    labelme(mine / "a.json", [shape("car", [(0, 0), (9, 0), (9, 9)])])
    if "gone" in content:
        (mine / "b.png").rename(mine / "c.png")
    (mine / "b.json").write_text(content)
    assert run("--polygons", mine, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and f"{mine}/b.json" in error and "1 of 2 samples" in error


# ---- COCO


def test_coco_draws_parts_run_lengths_and_small_objects_on_top(mine, tmp_path):
    square = lambda x, y, side: [x, y, x + side, y, x + side, y + side, x, y + side]
    ring = np.zeros(SIZE, np.uint8)
    ring[20:30, 40:60] = 1
    ring[24:26, 44:56] = 0
    runs = np.diff(np.flatnonzero(np.diff(ring.T.ravel(), prepend=2)), append=ring.size).tolist()
    coco(mine / "coco.json", [
        (0, "car", [square(12, 12, 4)], {"area": 1e9}), (0, "road", [square(10, 10, 10), square(30, 40, 5)], {}),
        (0, "sky", {"counts": runs, "size": [*SIZE]}, {"iscrowd": 1}),
    ])  # fmt: skip
    assert run("--polygons", mine / "coco.json", "--out", tmp_path / "out") == 0
    assert read_lines(tmp_path / "out/out_names.txt") == ["background", *NAMES]
    label = label_of(tmp_path / "out", "a")
    assert label[13, 13] == 2 and label[18, 18] == 1 and label[42, 32] == 1 and label[30, 25] == 0
    assert ((label == 3) == ring).all() and (label_of(tmp_path / "out", "b") == 0).all()


def test_run_lengths_keep_no_more_than_the_rectangle_of_the_object():
    mask = np.zeros(SIZE, bool)
    mask[20:23, 30:40] = True
    flat = mask.ravel("F")
    counts = np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size]).tolist()
    rows, columns, cut = _coco_object({"size": [*SIZE], "counts": counts}, *SIZE)
    assert (rows, columns) == (slice(20, 23), slice(30, 40)) and cut.all() and cut.base is None
    assert _coco_object({"size": [*SIZE], "counts": [flat.size]}, *SIZE)[2].size == 0


def test_compressed_run_lengths_are_those_of_pycocotools(mine, tmp_path):
    mask = pytest.importorskip("pycocotools.mask")
    noise = np.random.default_rng(0).integers(0, 2, SIZE, np.uint8)
    blocks = np.kron(noise[:6, :8], np.ones((8, 8), np.uint8))
    found = [{"counts": mask.encode(np.asfortranarray(m))["counts"].decode(), "size": [*SIZE]} for m in (noise, blocks)]
    coco(mine / "coco.json", [(i, "car", rle, {}) for i, rle in enumerate(found)])
    assert run("--polygons", mine / "coco.json", "--out", tmp_path / "out") == 0
    for name, expected in (("a", noise), ("b", blocks)):
        assert ((label_of(tmp_path / "out", name) == 2) == expected).all()


def test_images_and_annotations_of_coco_without_a_partner_are_counted(mine, tmp_path, capsys):
    picture(mine / "c.png")
    coco(mine / "coco.json", [*CAR, (5, *CAR[0][1:])])
    assert run("--polygons", mine / "coco.json", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "1 images that no file lists are left out" in said
    assert f"1 annotations belong to no image of their file: {mine}/coco.json: annotation 1" in said


def test_coco_files_of_train_and_val_are_the_splits(tmp_path):
    for year, names in (("train2017", "a"), ("val2017", "bcd")):
        for name in names:
            picture(tmp_path / "coco" / year / f"{name}.png")
        coco(tmp_path / "coco/training data" / f"instances_{year}.json", CAR, [f"{name}.png" for name in names])
    assert run("--images", tmp_path / "coco", "--polygons", tmp_path / "coco/training data", "--out", tmp_path / "out") == 0
    val = [f"image/val2017/{name}.png label/val2017/{name}.png" for name in "bcd"]
    assert read_lines(tmp_path / "out/list/val.txt") == val


def test_one_coco_file_of_images_in_folders_keeps_their_splits(tmp_path):
    names = [f"{split}/{n}.png" for split in ("train", "val", "test") for n in range(2)]
    for name in names:
        picture(tmp_path / "mine" / name)
    coco(tmp_path / "mine/instances_default.json", [(i, "car", CAR[0][2], {}) for i in range(6)], names)
    assert run("--polygons", tmp_path / "mine", "--out", tmp_path / "out") == 0
    for split in ("train", "val", "test"):
        assert read_lines(tmp_path / f"out/list/{split}.txt") == [f"image/{split}/{n}.png label/{split}/{n}.png" for n in "01"]


def test_validation_images_that_are_missing_are_not_replaced_by_some_of_the_training(tmp_path, capsys):
    for split, names in (("train", "abcd"), ("val", "ef")):
        coco(tmp_path / f"mine/instances_{split}.json", [CAR[0]], [f"{name}.png" for name in names])
    for name in "abcd":
        picture(tmp_path / f"mine/{name}.png")
    assert run("--polygons", tmp_path / "mine", "--out", tmp_path / "out", "--skip-bad") == 1
    assert "nothing is left of val" in capsys.readouterr().err


def test_coco_files_beside_images_of_the_same_names_take_their_own(tmp_path):
    for split in ("train", "valid", "test"):
        picture(tmp_path / "coco" / split / "a.png")
        coco(tmp_path / "coco" / split / "_annotations.coco.json", CAR, ["a.png"])
    assert run("--polygons", tmp_path / "coco", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/list/val.txt").read_text() == "image/valid/a.png label/valid/a.png\n"
    assert (tmp_path / "out/list/test.txt").exists()


@pytest.mark.parametrize("segmentation, message", [
    ([], "annotation 0: no segmentation, only a box"), ([[1, 2, 3, 4]], "annotation 0: 2 points"), ([[1, 2, 3]], "x, y, x, y"),
    ("text", "annotation 0: segmentation 'text'"), ([[99, 99, 110, 99, 110, 110]], "lie outside the picture"),
    ({"counts": [5, 5], "size": [*SIZE]}, "run lengths are not 3072 pixels"),
    ({"counts": "~~~", "size": [*SIZE]}, "not 3072 pixels"), ({"counts": [-5, 3077], "size": [*SIZE]}, "not 3072 pixels"),
    ({"counts": [48, 64], "size": [8, 8]}, "run lengths of size [8, 8]"), ({"counts": None, "size": [*SIZE]}, "not 3072"),
    ({"counts": [2**62] * 4 + [3072], "size": [*SIZE]}, "not 3072"), ([[1, 2, 3, None, 5, 6]], "not a finite number"),
])  # fmt: skip
def test_a_fault_of_coco_is_named_with_file_and_annotation(mine, tmp_path, capsys, segmentation, message):
    coco(mine / "coco.json", [(0, "car", segmentation, {})])
    assert run("--polygons", mine / "coco.json", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and f"{mine}/coco.json: annotation 0: " in error and "1 of 2 samples" in error


def test_images_that_a_coco_file_names_and_nobody_has_are_listed(mine, tmp_path, capsys):
    coco(mine / "coco.json", CAR, ["a.png", "b.png", "c.png", "sub/d.png"])
    args = "--polygons", mine / "coco.json", "--out", tmp_path / "out"
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert "2 of 4 samples" in error and "image 14: c.png is not in" in error and "image 21: sub/d.png is not in" in error
    assert run(*args, "--skip-bad") == 0
    coco(mine / "coco.json", CAR, ["x.png", "y.png"])
    assert run(*args) == 1
    assert "none of its 2 images is in" in capsys.readouterr().err


def test_coco_files_without_annotations_are_refused(mine, tmp_path, capsys):
    coco(mine / "coco.json", [])
    assert run("--polygons", mine / "coco.json", "--out", tmp_path / "out") == 1
    assert f"{mine}/coco.json: no annotations in it, so every pixel would be background" in capsys.readouterr().err
    (mine / "coco.json").rename(mine / "val.json")
    coco(mine / "train.json", CAR, ["a.png"])  # another file's do not count
    assert run("--polygons", mine / "train.json", mine / "val.json", "--out", tmp_path / "out") == 1
    assert f"{mine}/val.json: no annotations in it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    coco(mine / "val.json", [], ["b.png"])  # a file an image
    assert run("--polygons", mine / "train.json", mine / "val.json", "--out", tmp_path / "out") == 0
    coco(mine / "train.json", [], ["a.png"])
    assert run("--polygons", mine / "train.json", mine / "val.json", "--out", tmp_path / "none") == 1
    assert "train.json: no annotations in it and 1 more" in capsys.readouterr().err


def test_a_coco_size_that_is_none_is_left_out_with_skip_bad(mine, tmp_path):
    picture(mine / "c.png")
    coco(mine / "coco.json", CAR, ["a.png", "b.png", "c.png"])
    content = json.loads((mine / "coco.json").read_text())
    content["images"][0]["height"] = 48.0
    (mine / "coco.json").write_text(json.dumps(content))
    assert run("--polygons", mine / "coco.json", "--out", tmp_path / "out", "--skip-bad") == 0
    assert "image 0: height 48.0" in (tmp_path / "out/skipped.txt").read_text()


def test_a_name_without_a_path_takes_no_picture_of_another_folder(tmp_path, capsys):
    """siteA has lost its photograph; siteB has one of that name, and annotations of its own or none."""
    for own in (False, True):
        root = tmp_path / f"l{own}"
        picture(root / "siteA/other.png")
        picture(root / "siteB/IMG_1.png")
        for name in ("siteA/other", "siteA/IMG_1", *(["siteB/IMG_1"] if own else [])):
            labelme(root / f"{name}.json", [shape("car" if "A" in name else "tree", [[0, 0], [9, 0], [9, 9]])])
        assert run("--polygons", root, "--out", tmp_path / f"out{own}") == 1
        assert f"siteA/IMG_1.json: its image IMG_1.png is not in {root}" in capsys.readouterr().err


def test_pictures_in_a_folder_of_their_own_are_found_by_their_names(tmp_path):
    for name, site in (("a", "x"), ("b", "y")):
        picture(tmp_path / f"r/img/all/{name}.png")
        (tmp_path / "r/ann" / site).mkdir(parents=True)
        labelme(tmp_path / f"r/ann/{site}/{name}.json", [shape("car", [[0, 0], [9, 0], [9, 9]])])
    words = ["--images", tmp_path / "r/img", "--polygons", tmp_path / "r/ann"]
    assert run(*words, "--out", tmp_path / "out") == 0
    assert len([*(tmp_path / "out/label").rglob("*.png")]) == 2


def test_a_missing_image_of_coco_is_named_wherever_one_stands(mine, tmp_path, monkeypatch, capsys):
    """Its folder is that of the working directory as far as its name goes, which is no source."""
    coco(mine / "coco.json", CAR, ["a.png", "gone.png"])
    monkeypatch.chdir(tmp_path)
    assert run("--images", mine, "--polygons", mine / "coco.json", "--out", "out") == 1
    error = capsys.readouterr().err
    assert f"gone.png is not in {mine}" in error and "must stay as it is" not in error


@pytest.mark.parametrize("label", [None, ""])
def test_a_shape_without_a_label_is_named(mine, tmp_path, capsys, label):
    labelme(mine / "a.json", [shape("car", [[0, 0], [9, 0], [9, 9]]), shape(label, [[0, 0], [9, 0], [9, 9]])])
    assert run("--polygons", mine, "--out", tmp_path / "out") == 1
    assert "a.json: shapes[1] has no label" in capsys.readouterr().err


def test_a_labelme_file_without_a_path_finds_any_kind_of_picture(tmp_path):
    for name in ("a.JPEG", "b.webp"):
        picture(tmp_path / "mine" / name)
        labelme(tmp_path / "mine" / f"{name[0]}.json", [shape("car", [[0, 0], [9, 0], [9, 9]])], image="gone.jpg")
    assert run("--polygons", tmp_path / "mine", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out/image").iterdir()) == ["a.JPEG", "b.webp"]


def test_names_that_yaml_takes_for_truth_values_are_refused(mine, tmp_path, capsys):
    (mine / "data.yaml").write_text("names: [yes, no]\ntrain: .\nval: .\n")
    assert run("--polygons", mine / "data.yaml", "--out", tmp_path / "out") == 1
    assert "data.yaml: names: YAML takes one of them for true or false" in capsys.readouterr().err


def test_categories_that_are_renamed_void_or_background_are_no_classes(mine, tmp_path):
    square = lambda x: [[x, 0, x + 9, 0, x + 9, 9, x, 9]]
    objects = [(i, name, square(9 * k), {}) for i in (0, 1) for k, name in enumerate(("void", "_background_", "car"))]
    coco(mine / "all.json", objects, names=["void", "_background_", "car", " "])
    assert run("--polygons", mine / "all.json", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/out_names.txt").read_text() == "background\ncar\nunnamed\n"
    assert read_label(tmp_path / "out/label/a.png")[0, ::9][:4].tolist() == [255, 0, 1, 0]


@pytest.mark.parametrize("spoil, message", [
    ({"images": None}, "expected `images`"), ({"categories": [{"id": 1}]}, "expected `categories`, a list with id and name"),
    ({"annotations": [{"image_id": 0, "category_id": [1]}]}, "expected `annotations`"),
    ({"annotations": [{"image_id": 0, "category_id": 4}, {"image_id": 7, "id": 3}]}, "in each entry, found {'id': 3, 'im"),
    ({"annotations": [{"image_id": 0, "category_id": 99, "segmentation": []}]}, "'category 99' is no class"),
    ({"annotations": [{"image_id": "0", "category_id": 4}]}, "none of the 1 annotations has the `image_id` of an image"),
    ({"images": [{"id": 4, "file_name": "a.png"}, {"id": 4, "file_name": "b.png"}]}, "images: the id 4 stands twice"),
    ({"categories": []}, "one class, background, is none to tell from others"),
    ({"images": [{"id": 0, "file_name": "a.png", "width": 9, "height": 0}]}, "image 0: height 0 and width 9"),
])  # fmt: skip
def test_a_file_that_is_not_of_coco_is_named(mine, tmp_path, capsys, spoil, message):
    coco(mine / "coco.json", CAR)
    content = json.loads((mine / "coco.json").read_text()) | spoil
    (mine / "coco.json").write_text(json.dumps(content))
    assert run("--polygons", mine / "coco.json", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and f"{mine}/coco.json" in error


# ---- YOLO


def yolo(root, layout):
    """Two training pictures with a triangle each, one of them without a text, and one to validate on, in a layout."""
    for split, name, text in (
        ("train", "a", "1 0 0 0.5 0 0.5 0.5\n"),
        ("train", "c", None),
        ("val", "b", "0 0 0 1 0 1 1 0 1\n"),
    ):
        picture(root / layout.format("images", split=split) / f"{name}.png")
        labels = root / layout.format("labels", split=split)
        labels.mkdir(parents=True, exist_ok=True)
        if text:
            (labels / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize("layout, yaml", [
    ("{}/{split}", "path: .\ntrain: images/train\nval: images/val\nnames: {0: road, 1: car}\n"),
    ("{split}/{}", "train: ../train/images\nval: ../val/images\nnc: 2\nnames: ['road', 'car']\n"),
])  # fmt: skip
def test_yolo_folders_are_the_splits_and_coordinates_are_shares(tmp_path, capsys, layout, yaml):
    root = yolo(tmp_path / "images/yolo", layout)
    (root / "data.yaml").write_text(yaml)
    assert run("--polygons", root, "--out", tmp_path / "out") == 0
    assert "1 images without a text file have no objects" in capsys.readouterr().out
    assert read_lines(tmp_path / "out/out_names.txt") == ["background", "road", "car"]
    assert (label_of(tmp_path / "out", "b") == 1).all() and (label_of(tmp_path / "out", "c") == 0).all()
    label = label_of(tmp_path / "out", "a")
    assert label[2, 30] == 2 and label[20, 2] == 0 and (label == 2).sum() == pytest.approx(12 * 32, abs=20)
    assert len(read_lines(tmp_path / "out/list/train.txt")) == 2 and len(read_lines(tmp_path / "out/list/val.txt")) == 1


@pytest.mark.parametrize("copy", [[], ["--copy"]])
def test_yolo_images_that_lie_elsewhere_are_not_replaced_by_links_to_themselves(tmp_path, capsys, copy):
    root = yolo(tmp_path / "e", "image/{split}")  # texts beside the images, all where `folder` would put the links
    (root / "list").mkdir()
    (root / "list/val.txt").write_text("../image/val/b.png\n")
    (tmp_path / "cfg").mkdir()
    for val in ("image/val", "list/val.txt"):
        (tmp_path / "cfg/data.yaml").write_text(f"path: {root}\ntrain: image/train\nval: {val}\nnames: [road, car]\n")
        assert run("--polygons", tmp_path / "cfg/data.yaml", "--out", root, *copy) == 1
        assert "lies in the source" in capsys.readouterr().err
    assert not (root / "image/train/a.png").is_symlink() and read_lines(root / "list/val.txt") == ["../image/val/b.png"]


def test_yolo_texts_without_data_yaml_need_the_names(tmp_path, capsys):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    args = "--images", root / "images", "--polygons", root / "labels", "--out", tmp_path / "out"
    assert run(*args) == 1
    assert "give their names, in order, with --names FILE" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert run(*args, "--names", tmp_path / "empty.txt") == 1
    assert "empty.txt: no names in it" in capsys.readouterr().err
    for paths in (["labels/train", "labels/val"], ["labels/train/a.txt"]):
        assert run("--images", root, "--polygons", *(root / path for path in paths), "--out", tmp_path / "out") == 1
        assert f"{root / paths[0]}: YOLO's text files are found by their path in one folder" in capsys.readouterr().err
    (root / "labels/val/b.txt").rename(root / "labels/val/b.TXT")
    assert run(*args, "--names", names_file(tmp_path)) == 0
    assert (label_of(tmp_path / "out", "b") == 1).all()


def test_a_classes_txt_is_what_numbers_mean_and_names_only_order_the_classes(tmp_path, capsys):
    root, names = yolo(tmp_path / "yolo", "{}/{split}"), tmp_path / "names.txt"
    names.write_text("background\ncar\nroad\n")
    args = "--images", root / "images", "--polygons", root / "labels", "--out", tmp_path / "out", "--names", names
    assert run(*args) == 1  # 0 could be the background or the road
    assert f"If so, put the same lines into {root / 'labels/classes.txt'}" in capsys.readouterr().err
    (root / "labels/classes.txt").write_text("road\ncar\n")
    assert run(*args) == 0
    assert read_lines(tmp_path / "out/out_names.txt") == ["background", "car", "road"]
    assert (label_of(tmp_path / "out", "b") == 2).all()


def test_yolo_texts_without_images_say_so(tmp_path, capsys):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    assert run("--polygons", root / "labels", "--names", names_file(tmp_path), "--out", tmp_path / "out") == 1
    assert f"{root / 'labels'}: no images (" in capsys.readouterr().err


def test_a_classes_txt_beside_labelme_files_changes_nothing(mine, tmp_path):
    for name in "ab":
        labelme(mine / f"{name}.json", [shape("car", [(0, 0), (9, 0), (9, 9)])])
    for name in ("classes.txt", "labels.txt"):
        (mine / name).write_text("car\n")
    assert run("--polygons", mine, "--out", tmp_path / "out") == 0


def test_yolo_texts_have_the_accents_of_another_machine_than_the_images(tmp_path, capsys):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    for i, (image, text) in enumerate((("NFD", "NFC"), ("NFC", "NFD"))):
        picture(root / "images/train" / unicodedata.normalize(image, f"Caf\u00e9 {i}.png"))
        (root / "labels/train" / unicodedata.normalize(text, f"Caf\u00e9 {i}.txt")).write_text("1 0 0 1 0 1 1 0 1\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [road, car]\n")
    assert run("--polygons", root, "--out", tmp_path / "out") == 0
    assert "1 images without a text file" in capsys.readouterr().out
    assert (label_of(tmp_path / "out", "0") == 2).all() and (label_of(tmp_path / "out", "1") == 2).all()


def test_a_name_whose_accents_would_be_too_long_apart_has_no_text(tmp_path):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    picture(root / "images/train" / f"{30 * chr(0xac01)}.png")  # of 94 bytes, and 274 in the form of a Mac
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [road, car]\n")
    assert run("--polygons", root, "--out", tmp_path / "out") == 0


def test_test_images_of_yolo_without_a_text_have_no_objects_where_others_have_one(tmp_path):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    for split in ("images/test", "labels/test"):
        (root / split).mkdir()
    for name in "de":
        picture(root / f"images/test/{name}.png")
    (root / "labels/test/d.txt").write_text("1 0 0 1 0 1 1 0 1\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [road, car]\n")
    assert run("--polygons", root, "--out", tmp_path / "out") == 0
    assert len(read_list(tmp_path / "out/list/test.txt", tmp_path / "out", "val")) == 2
    (root / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/val\nnames: [road, car]\n")
    assert run("--polygons", root, "--out", tmp_path / "other") == 0
    assert len(read_lines(tmp_path / "other/list/val.txt")) == 1 and not (tmp_path / "other/list/test.txt").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_images_to_test_on_are_never_drawn_for_training(tmp_path, capsys, labelled):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    (root / "images/val").rename(root / "images/test")
    (root / "labels/val").rename(root / "labels/test")
    if not labelled:
        (root / "labels/test/b.txt").unlink()
    (root / "data.yaml").write_text("train: images/train\nval: images/train\ntest: images/test\nnames: [road, car]\n")
    assert run("--polygons", root, "--out", tmp_path / "out") == 0
    assert "1 images without a text file have no objects" in capsys.readouterr().out
    lists = {name: read_lines(tmp_path / f"out/list/{name}.txt") for name in ("train", "val", "trainval", "test")}
    assert lists["test"] == ["image/test/b.png" + " label/test/b.png" * labelled]
    assert sorted(lists["train"] + lists["val"]) == sorted(lists["trainval"]) == [
        f"image/train/{name}.png label/train/{name}.png" for name in "ac"
    ]  # fmt: skip


def test_names_without_the_background_are_not_replaced_by_names_with_it(tmp_path, capsys):
    root, names = yolo(tmp_path / "yolo", "{}/{split}"), tmp_path / "out/out_names.txt"  # a second run would shift the classes
    names.parent.mkdir()
    names.write_text("road\ncar\n")
    args = "--images", root / "images", "--polygons", root / "labels", "--out", tmp_path / "out", "--names", names
    assert run(*args) == 1
    assert f"--names {names}: would be replaced by" in capsys.readouterr().err and read_lines(names) == ["road", "car"]


@pytest.mark.parametrize("line, message", [
    ("0 0.5 0.5 0.2 0.2", "line 2: a box (centre, width, height), not a polygon"), ("0 0 0 1 0", "a box"),
    ("0 0 0 1 0 1", "line 2: 5 numbers after the class"), ("2 0 0 1 0 1 1", "'class 2' is no class"),
    ("0 0 0 60 0 60 40", "line 2: coordinates of 0 to 60: they are shares of width and height"),
    ("0 1.1 0 1.2 0 1.2 1", "lie outside"),
    (f"{'9' * 5000} 0 0 1 0 1 1", "is no class"),
    ("car 0 0 1 0 1 1", "'class car' is no class"), ("0 0 0 1 x 1 1", "line 2: expected `class x y x y ...`"),
    ("0 0 0 1 0 nan 1", "line 2: a coordinate is not a finite number"), ("0 0 0", "line 2: 1 points"),
])  # fmt: skip
def test_a_fault_of_yolo_is_named_with_file_and_line(tmp_path, capsys, line, message):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [road, car]\n")
    (root / "labels/train/a.txt").write_text(f"\n{line}\n")
    assert run("--polygons", root, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error and f"{root}/labels/train/a.txt: line 2" in error and "1 of 3 samples" in error


@pytest.mark.parametrize("yaml, message", [
    ("names: [a]\n", "expected `train`, `val` and `names`"), ("train: gone\nnames: [a]\n", "; correct the line, or take it"),
    ("train:\nnames: [a]\n", "expected `train`, `val` and `names`"),
    ("train: images/train\nnames: {1: a}\n", "names: expected a list"),
    ("train: labels\nnames: [a]\n", "train: no images in labels"), ("train: [\n", "data.yaml: line 2"),
])  # fmt: skip
def test_a_data_yaml_that_is_none_is_explained(tmp_path, capsys, yaml, message):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    (root / "data.yaml").write_text(yaml)
    assert run("--polygons", root, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_yolo_images_none_of_which_has_a_text_are_an_error(tmp_path, capsys):
    root = yolo(tmp_path / "yolo", "{}/{split}")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [road, car]\n")
    (root / "labels").rename(root / "annotations")
    assert run("--polygons", root, "--out", tmp_path / "out") == 1
    assert "no image has a text file: that of" in capsys.readouterr().err
    (root / "train.txt").write_text("old/images/a.png\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [road, car]\n")
    assert run("--polygons", root, "--out", tmp_path / "out") == 1
    assert f"there is no {root}/old/images/a.png: correct the list" in capsys.readouterr().err


# ---- arguments


def test_polygons_do_not_go_with_the_flags_of_masks(mine, tmp_path, capsys):
    assert run("--polygons", mine, "--ids", "0", "1", "--masks", mine, "--out", tmp_path / "out") == 1
    assert "--polygons does not go with --masks and --ids" in capsys.readouterr().err
    (tmp_path / "data.yaml").write_text("train: mine\nnames: [a]\n")
    assert run("--polygons", tmp_path / "data.yaml", "--images", mine, "--out", tmp_path / "out") == 1
    assert f"--images {mine} does not go with {tmp_path}/data.yaml" in capsys.readouterr().err
    assert run("--polygons", tmp_path / "gone", "--out", tmp_path / "out") == 1
    assert "gone: no such file or folder" in capsys.readouterr().err
    assert run("--polygons", mine, "--out", tmp_path / "out") == 1
    assert "no annotations: expected *.json of labelme or COCO" in capsys.readouterr().err


# ---- files with any value anywhere

ODD = [
    None, True, -1, 1e400, float("nan"), "", "x" * 300, "\0", "../../b", [], {}, [[]], {"a": 1}, 10**400, 2**63, "\ud800",
    "mask",
]  # fmt: skip


def spoiled(content):
    """Copies of a JSON content with one of its values replaced, each value by each odd one."""

    def places(node, path=()):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ():
            yield (*path, key)
            yield from places(value, (*path, key))

    for path in [*places(content)]:
        for odd in ODD:
            copy = json.loads(json.dumps(content))
            node = copy
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = odd
            yield copy


@pytest.mark.parametrize("write, name", [(as_labelme, "0.json"), (as_coco, "annotations.json")])
def test_any_value_anywhere_is_read_or_refused_with_words(mine, write, name):
    (mine / "a.png").rename(mine / "0.png")
    paths = write(mine, {"0": scene(0)})
    content, refused = json.loads((mine / name).read_text()), 0
    some = [*spoiled(content)][::7]  # of 17 values: each comes somewhere
    for copy in some:
        (mine / name).write_text(json.dumps(copy))
        try:
            plan = polygons(paths, names=("background", *NAMES))
            for sample in plan.samples:
                assert sample.fault or plan.read(sample.label, SIZE).dtype == np.uint8
        except Mistake:
            refused += 1
    assert len(some) > 60 and refused > len(some) / 4
