import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_rules import generator, golden_label

from util.metric import (
    AverageMeter,
    boundary_areas,
    confusion_matrix,
    image_scores,
    intersectionAndUnion,
    intersectionAndUnionGPU,
    scores,
    table,
)

pytestmark = pytest.mark.usefixtures("two_threads")
GOLDEN = np.load(Path(__file__).parent / "golden/semseg.npz")


def pair(K, shape=(3, 40, 50)):
    pred = torch.randint(0, K, shape, generator=generator(f"pred{K}"))
    return pred, golden_label(f"metric{K}", *shape, K)


def by_definition(pred, label, K, ignore):
    valid = label != ignore
    inter = [int(((pred == k) & (label == k) & valid).sum()) for k in range(K)]
    union = [int((((pred == k) | (label == k)) & valid).sum()) for k in range(K)]
    return inter, union, [int(((label == k) & valid).sum()) for k in range(K)]


@pytest.mark.parametrize("K", [5, 150])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_counts_equal_the_golden_numbers(K, dtype):
    pred, label = (x.to(dtype) for x in pair(K))
    expected = [GOLDEN[f"metric/{K}/{name}"].tolist() for name in ("intersection", "union", "target")]
    host, device = intersectionAndUnion(pred.numpy(), label.numpy(), K), intersectionAndUnionGPU(pred, label, K)
    assert [c.tolist() for c in host] == expected and {c.dtype for c in host} == {np.dtype(np.int64)}
    assert [c.tolist() for c in device] == expected and {c.dtype for c in device} == {torch.int64}


@pytest.mark.parametrize(
    "K, ignore, dtype",
    [
        (3, 255, np.uint8),
        (256, 65535, np.uint16),
        (300, 255, np.uint16),
        (300, 65535, np.uint16),
        (4, -1, np.int64),
        (3, 1, np.uint8),
    ],
)
def test_counts_equal_their_definition_for_any_classes_and_ignored_id(K, ignore, dtype):
    rng = np.random.default_rng(K)
    label = rng.integers(0, K, (2, 60, 70)).astype(dtype)
    pred = np.where(rng.random(label.shape) < 0.5, label, rng.integers(0, K, label.shape)).astype(dtype)
    label[rng.random(label.shape) < 0.2] = ignore
    counts = intersectionAndUnion(pred, label, K, ignore)
    assert [c.tolist() for c in counts] == list(by_definition(pred, label, K, ignore))
    matrix = confusion_matrix(pred, label, K, ignore)
    assert matrix.shape == (K, K) and matrix.dtype == torch.int64
    assert matrix[2, 1] == ((label == 2) & (pred == 1) & (label != ignore)).sum()
    assert np.array_equal(matrix.diagonal(), counts[0]) and np.array_equal(matrix.sum(1), counts[2])


def test_16_bit_tensors_are_counted():
    """As a loader makes them of 16-bit label files."""
    pred, label = np.uint16([[0, 1, 299]]), np.uint16([[0, 299, 65535]])
    tensors = torch.from_numpy(pred), torch.from_numpy(label)
    assert torch.equal(confusion_matrix(*tensors, 300, 65535), confusion_matrix(pred, label, 300, 65535))
    assert confusion_matrix(tensors[0].long(), tensors[1], 300, 65535).sum() == 2


def test_inputs_are_never_modified():
    pred, label = pair(5)
    before = pred.clone(), label.clone()
    for p, t in ((pred, label), (pred.byte(), label.byte())):
        intersectionAndUnionGPU(p, t, 5)
        intersectionAndUnion(p.numpy(), t.numpy(), 5)
        confusion_matrix(p, t, 5)
        assert torch.equal(p, before[0].to(p.dtype)) and torch.equal(t, before[1].to(t.dtype))


def test_counts_are_exact_beyond_two_to_the_24():
    label = np.zeros((4100, 4100), np.uint8)
    inter, union, target = intersectionAndUnion(label, label, 2)
    assert inter.tolist() == union.tolist() == target.tolist() == [4100 * 4100, 0]


def test_noncontiguous_and_readonly_arrays_are_counted():
    pred, label = (x.byte().numpy() for x in pair(5))
    pred, label = np.ascontiguousarray(pred)[:, ::2, ::-1], label[:, ::2, ::-1]
    label.flags.writeable = False
    assert [c.tolist() for c in intersectionAndUnion(pred, label, 5)] == list(by_definition(pred, label, 5, 255))


def test_a_prediction_of_no_class_is_a_miss():
    label, pred = np.uint8([[0, 0, 1, 255]]), np.uint8([[0, 255, 7, 7]])
    assert [c.tolist() for c in intersectionAndUnion(pred, label, 2)] == [[1, 0], [2, 1], [2, 1]]
    with pytest.raises(ValueError, match=r"prediction 7 \(1 pixels\), 255 \(1 pixels\) outside 0..1"):
        confusion_matrix(pred, label, 2)
    with pytest.raises(ValueError, match=r"prediction 700 \(1 pixels\) outside 0..1"):
        confusion_matrix(torch.tensor([[700]], dtype=torch.uint16), torch.tensor([[1]]), 2)


def test_a_wrong_label_is_named_with_its_count():
    label = np.full((4, 4), 9, np.uint8)
    for function in (intersectionAndUnion, confusion_matrix):
        with pytest.raises(ValueError, match=r"label 9 \(16 pixels\) outside 0..4 and not the ignored 255"):
            function(label, label, 5)
    assert [c.tolist() for c in intersectionAndUnionGPU(torch.tensor([1, 0]), torch.tensor([9, 0]), 2)] == [
        [1, 0],
        [1, 1],
        [1, 0],
    ]


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ"):
        intersectionAndUnion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 2)


def test_scores_leave_absent_classes_out_of_the_means():
    # class 0: seen; class 1: predicted only; class 2: in no label and no prediction; class 3: never found
    result = scores(np.array([6, 0, 0, 0]), np.array([10, 2, 0, 2]), np.array([8, 0, 0, 2]))
    assert np.array_equal(result.iou, [0.6, 0, np.nan, 0], equal_nan=True)
    assert np.array_equal(result.accuracy, [0.75, np.nan, np.nan, 0], equal_nan=True)
    assert np.array_equal(result.precision, [0.75, 0, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(result.dice, [0.75, 0, np.nan, 0], equal_nan=True)
    assert (result.mIoU, result.mAcc, result.allAcc, result.mDice) == (0.6 / 3, 0.375, 0.6, 0.25)


def test_scores_of_a_confusion_matrix_and_of_counts_are_the_same():
    pred, label = pair(5)
    a, b = scores(confusion_matrix(pred, label, 5)), scores(*intersectionAndUnionGPU(pred, label, 5))
    assert a.mIoU == b.mIoU and a.allAcc == b.allAcc
    for name in ("iou", "accuracy", "dice", "precision"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert np.allclose(a.dice, 2 * a.iou / (1 + a.iou))


def test_scores_of_nothing_are_nan():
    result = scores(np.zeros((3, 3), np.int64))
    assert all(math.isnan(mean) for mean in (result.mIoU, result.mAcc, result.allAcc, result.mDice))


def test_table_shows_absent_classes_as_a_dash():
    result = scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    names = "road", "a|b", "sky"
    text, markdown = table(result, names).splitlines(), table(result, names, markdown=True).splitlines()
    assert text[1].split() == ["0", "road", "0.7500", "0.7500", "1.0000", "0.8571"]
    assert text[3].split() == ["2", "sky", "-", "-", "-", "-"] and text[4].split()[:2] == ["mean", "0.7750"]
    assert len({len(line) for line in text}) == 1
    assert markdown[1].count("---") == 6 and markdown[3].startswith("| 1 | a\\|b | 0.8000 |") and len(markdown) == 6


def test_meter_weights_by_n_and_has_mean_nan_without_values():
    meter = AverageMeter()
    assert math.isnan(meter.avg) and meter.count == 0
    meter.update(1.0, 3)
    meter.update(5.0)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5.0, 2.0, 8.0, 4)


def test_meter_does_not_modify_the_arrays_that_it_adds_up():
    meter, counts = AverageMeter(), np.array([1, 2])
    meter.update(counts)
    meter.update(counts)
    assert counts.tolist() == [1, 2] and meter.sum.tolist() == [2, 4]


def boundary_by_definition(pred, label, K, ignore, distance):
    """Class by class and pixel by pixel: a pixel is inside if the square around it is of its class, all within the image."""
    H, W = label.shape
    pred = np.where(label == ignore, ignore, pred)

    def contour(ids, k):
        inside = np.zeros((H, W), bool)
        for y in range(distance, H - distance):
            for x in range(distance, W - distance):
                inside[y, x] = (ids[y - distance : y + distance + 1, x - distance : x + distance + 1] == k).all()
        return (ids == k) & ~inside

    pairs = [(contour(label, k), contour(pred, k)) for k in range(K)]
    return [[int((g & p).sum()) for g, p in pairs], [int((g | p).sum()) for g, p in pairs], [int(g.sum()) for g, _ in pairs]]


@pytest.mark.parametrize("dilation, distance", [(0.0, 1), (0.02, 1), (0.05, 2), (0.1, 4)])
def test_boundary_counts_equal_their_definition(dilation, distance):
    rng = np.random.default_rng(distance)
    blocks = rng.choice([0, 1, 2, 255], (5, 6)).astype(np.uint8)
    label = np.kron(blocks, np.ones((6, 6), np.uint8))[:27, :31]  # diagonal 41.1
    pred = np.roll(np.where(label == 255, 1, label), 2, axis=1)
    pred[:3, :4] = 77  # of no class
    found = boundary_areas(pred, label, 3, 255, dilation)
    assert found.tolist() == boundary_by_definition(pred, label, 3, 255, distance)
    assert 0 < found[0].sum() < found[1].sum()


def test_boundary_iou_falls_where_an_error_at_an_edge_hardly_changes_the_iou():
    label = np.zeros((100, 100), np.uint8)
    label[20:80, 20:80] = 1
    pred = label.copy()
    pred[18:20, 20:80] = 1  # two pixels too high
    assert scores(confusion_matrix(pred, label, 2)).iou[1] == 60 / 62
    # The contours are 3 pixels wide, 684 of the label and 696 of the prediction; two rows of 54 lie in the former alone.
    assert scores(*boundary_areas(pred, label, 2)).iou[1] == (684 - 108) / (684 + 696 - (684 - 108))
    assert scores(*boundary_areas(label, label, 2)).mIoU == 1


def test_frequency_weighted_iou_is_that_of_its_formula():
    confusion = np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]])
    result = scores(confusion)
    assert result.fwIoU == pytest.approx((10 * 8 / 11 + 5 * 4 / 7) / 15, abs=1e-15)
    assert result.recall is result.accuracy and result.recall.tolist()[:2] == [0.8, 0.8]


def test_predictions_of_no_class_fill_one_more_column():
    label, pred = np.uint8([[0, 0, 1, 255]]), np.uint8([[0, 255, 7, 7]])
    confusion = confusion_matrix(pred, label, 2, other=True)
    assert confusion.tolist() == [[1, 0, 1], [0, 0, 1]]
    by_areas, by_matrix = scores(*intersectionAndUnion(pred, label, 2)), scores(confusion)
    assert (by_areas.iou == by_matrix.iou).all() and by_areas.allAcc == by_matrix.allAcc == 1 / 3
    with pytest.raises(ValueError, match="label 1 "):
        confusion_matrix(pred, label, 1, other=True)


def test_the_miou_of_an_image_is_the_mean_over_its_labelled_classes():
    found = image_scores(np.array([[6, 2, 1], [0, 0, 0], [0, 0, 3]]))
    assert np.array_equal(found, [(6 / 9 + 3 / 4) / 2, 9 / 12, 6 / 9, math.nan, 3 / 4], equal_nan=True)
    assert np.isnan(image_scores(np.zeros((3, 3)))).all()


def test_the_table_has_a_column_for_contours_when_they_were_scored():
    result = scores(np.array([[3, 1], [0, 4]]))
    text, markdown = (table(result, ["a", "b"], markdown=m, boundary=scores([1, 0], [2, 1], [1, 1])) for m in (False, True))
    assert text.splitlines()[0].endswith("boundary IoU") and text.splitlines()[1].endswith("0.5000")
    assert markdown.splitlines()[-1].endswith("| 0.2500 |") and len(set(map(len, text.splitlines()))) == 1
