import random
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from util import transform as T
from util.dataset import EpochSampler, SemData, read_list, sample_rng, worker_init
from util.image import read_image, read_label, write_png


def picture(seed=0, h=24, w=32, classes=5):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (h, w, 3), np.uint8), draw.integers(0, classes, (h, w)).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, array)
    return path


@pytest.fixture
def root(tmp_path):
    """A data_root of six images with labels and its list."""
    lines = []
    for i in range(6):
        image, label = picture(i)
        save(tmp_path / f"image/{i}.png", image)
        save(tmp_path / f"label/{i}.png", label)
        lines.append(f"image/{i}.png label/{i}.png")
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def list_of(root, *lines):
    (root / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    return root / "list.txt"


# ---------------------------------------------------------------- lists


def test_a_list_gives_paths_under_data_root(root):
    pairs = read_list(root / "train.txt", root, "train")
    assert len(pairs) == 6
    assert pairs[1] == (str(root / "image/1.png"), str(root / "label/1.png"))


def test_blank_lines_comments_windows_line_ends_and_a_byte_order_mark_are_skipped(root):
    path = list_of(
        root, "\ufeff# a comment", "", "   ", "image/0.png   label/0.png  \r", "  # another", "image/1.png label/1.png"
    )
    assert len(read_list(path, root, "val")) == 2


@pytest.mark.parametrize("gap", [" ", "\t", "  ", " \t "])
def test_paths_with_spaces_are_split_where_the_files_are(root, gap):
    image, label = picture()
    save(root / "my images/a b.png", image)
    save(root / "my labels/a b .png", label)
    path = list_of(root, f"my images/a b.png{gap}my labels/a b .png")
    assert read_list(path, root, "train") == [(str(root / "my images/a b.png"), str(root / "my labels/a b .png"))]
    assert read_list(path, root, "test") == [(str(root / "my images/a b.png"), None)]


def test_the_test_split_needs_no_label_and_ignores_one(root):
    save(root / "my images/a b.png", picture()[0])
    path = list_of(root, "image/0.png", "image/1.png label/none.png", "my images/a b.png", "image/2.png\tlabel/none.png")
    names = ["image/0.png", "image/1.png", "my images/a b.png", "image/2.png"]
    assert read_list(path, root, "test") == [(str(root / name), None) for name in names]


def test_a_missing_list_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"none.txt: no such list file \(split train\)"):
        read_list(root / "none.txt", root, "train")
    with pytest.raises(FileNotFoundError, match=r"None: no such list file"):
        SemData("train", str(root), None)


def test_an_empty_list_is_an_error(root):
    with pytest.raises(ValueError, match=r"list.txt: the list is empty \(split val\)"):
        read_list(list_of(root, "# nothing", ""), root, "val")


def test_missing_files_are_counted_and_the_first_are_shown_with_their_lines(root):
    path = list_of(root, "image/0.png label/0.png", *(f"image/{i}.png label/{i}.png" for i in range(4, 14)))
    with pytest.raises(FileNotFoundError) as error:
        read_list(path, root, "train")
    text = str(error.value)
    assert f"{path}: 16 of the files it names do not exist under data_root = {root}" in text
    assert f"line 4: {root / 'image/6.png'}" in text and "image/9.png" not in text


def test_a_line_without_label_is_an_error_in_train_and_val(root):
    path = list_of(root, "image/0.png label/0.png", "image/1.png")
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=rf"list.txt: 1 lines have no label, split {split} .*\n  line 2: image/1.png"):
            read_list(path, root, split)


def test_an_unknown_split_is_an_error(root):
    with pytest.raises(ValueError, match=r"split = 'training': expected 'train', 'val' or 'test'"):
        read_list(root / "train.txt", root, "training")


# ---------------------------------------------------------------- images and labels


def gray_png(path, ids, depth):
    """A gray PNG of 1, 2, 4 or 8 bits a pixel, by hand."""
    h, w = ids.shape
    bits = (ids[..., None] >> np.arange(depth)[::-1] & 1).reshape(h, -1).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", w, h, depth, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    data = b"".join(struct.pack(">I", len(x)) + t + x + struct.pack(">I", zlib.crc32(t + x)) for t, x in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_images_are_read_as_rgb_whatever_the_path_is_called(tmp_path):
    image, _ = picture()
    path = tmp_path / "Straße 東京.png"
    Image.fromarray(image).save(path)
    np.testing.assert_array_equal(read_image(path), image)


def test_the_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # turn by 90 degrees
    image, _ = picture()
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_gray_transparent_and_16_bit_images_become_8_bit_rgb(tmp_path):
    image, gray = picture()
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.repeat(gray[..., None], 3, 2))
    Image.fromarray(np.dstack([image, gray])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), image)
    cv2.imwrite(str(tmp_path / "deep.png"), image[..., ::-1].astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), image)


def test_8_and_16_bit_labels_keep_their_ids(tmp_path):
    for dtype, top in ((np.uint8, 256), (np.uint16, 65536)):
        ids = np.random.default_rng(0).integers(0, top, (20, 30)).astype(dtype)
        write_png(tmp_path / "a.png", ids)
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)
        assert read_label(tmp_path / "a.png").dtype == dtype


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_low_bit_depths_keep_their_ids(tmp_path, depth):
    ids = np.arange(15 * 16).reshape(15, 16) % 2**depth
    gray_png(tmp_path / "gray.png", ids, depth)
    np.testing.assert_array_equal(read_label(tmp_path / "gray.png"), ids)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("depth", [2, 8])
def test_palette_labels_are_read_as_indices(tmp_path, suffix, depth):
    ids = (np.arange(15 * 16).reshape(15, 16) % 2**depth).astype(np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    palette.save(tmp_path / f"a{suffix}", **({"bits": depth} if suffix == ".png" else {}))
    np.testing.assert_array_equal(read_label(tmp_path / f"a{suffix}"), ids)


def test_a_colour_mask_is_read_if_its_channels_are_equal_and_refused_otherwise(tmp_path):
    image, label = picture()
    Image.fromarray(np.repeat(label[..., None], 3, 2)).save(tmp_path / "equal.png")
    np.testing.assert_array_equal(read_label(tmp_path / "equal.png"), label)
    Image.fromarray(image).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"colour.png: a colour mask of shape \(24, 32, 3\).*convert the colours to ids"):
        read_label(tmp_path / "colour.png")


def test_a_float_label_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"a.tif: pixels are float32, expected 8-bit or 16-bit class ids"):
        read_label(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize("kept", [0, 20, 30, 300])
def test_files_that_cannot_be_decoded_are_named(tmp_path, read, kept):
    path = save(tmp_path / "a.png", picture()[0])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a.png: the file is empty" if kept == 0 else r"a.png: cannot be decoded"):
        read(path)
    path.write_text("this is no image, but a text that goes on for a while")
    with pytest.raises(ValueError, match=r"a.png: cannot be decoded"):
        read(path)


def test_a_cut_off_palette_label_is_named(tmp_path):
    ids = Image.fromarray(picture()[1]).convert("P")
    ids.save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a.png: cannot be decoded"):
        read_label(tmp_path / "a.png")


def test_write_png_uses_16_bits_only_where_ids_need_them(tmp_path):
    write_png(tmp_path / "a.png", np.array([[0, 255]], np.int64))
    assert read_label(tmp_path / "a.png").dtype == np.uint8
    write_png(tmp_path / "a.png", np.array([[0, 300]], np.int64))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), [[0, 300]])
    with pytest.raises(ValueError, match=r"a.png: ids -1\.\.3 do not fit"):
        write_png(tmp_path / "a.png", np.array([[-1, 3]]))


# ---------------------------------------------------------------- the dataset


def test_without_transform_a_sample_is_the_float_image_and_its_label(root):
    data = SemData("train", str(root), str(root / "train.txt"))
    image, label = data[2]
    assert len(data) == 6 and image.dtype == np.float32 and label.dtype == np.uint8
    np.testing.assert_array_equal(image, picture(2)[0])
    np.testing.assert_array_equal(label, picture(2)[1])


def test_the_test_split_has_zeros_for_labels(root):
    image, label = SemData("test", root, root / "train.txt")[0]
    assert label.shape == image.shape[:2] and label.dtype == np.uint8 and not label.any()


def test_different_sizes_of_image_and_label_are_an_error_with_both_paths(root):
    save(root / "label/0.png", picture(0, 23, 32)[1])
    with pytest.raises(ValueError) as error:
        SemData("train", root, root / "train.txt")[0]
    assert f"{root / 'image/0.png'} is 24 x 32, {root / 'label/0.png'} is 23 x 32" in str(error.value)


@pytest.mark.parametrize("wrong", [7, 300])
def test_ids_out_of_range_are_named_with_their_count(root, wrong):
    label = picture(0)[1].astype(np.uint16)
    label[:2, :3] = wrong
    label[5, 5] = 255
    save(root / "label/0.png", label)
    data = SemData("train", root, root / "train.txt", classes=5)
    message = rf"label/0.png: label ids outside 0..4 that are not ignore_label = 255: {wrong} \(6 pixels\)"
    with pytest.raises(ValueError, match=message):
        data[0]
    data[1]
    SemData("train", root, root / "train.txt", classes=5, ignore_label=wrong)[1]
    SemData("train", root, root / "train.txt")[0]


def test_ids_above_255_reach_the_tensor(root):
    label = picture(0)[1].astype(np.uint16) + 300
    save(root / "label/0.png", label)
    transform = T.Compose([T.RandScale([1, 1]), T.RandRotate([0, 0], [0, 0, 0], p=1), T.ToTensor()])
    _, out = SemData("train", root, root / "train.txt", transform, classes=400)[0]
    np.testing.assert_array_equal(out, label)


# ---------------------------------------------------------------- random numbers and order

AUGMENT = T.Compose(
    [
        T.RandScale([0.5, 2]),
        T.RandRotate([-10, 10], [1, 2, 3]),
        T.RandomGaussianBlur(),
        T.RandomHorizontalFlip(),
        T.Crop([17, 17], "rand", [1, 2, 3]),
        T.ToTensor(),
        T.Normalize([1, 2, 3], [4, 5, 6]),
    ]
)


def batches(root, epoch, rank=0, world_size=1, num_workers=0, seed=7):
    data = SemData("train", root, root / "train.txt", AUGMENT, seed=seed)
    sampler = EpochSampler(len(data), 3, seed=seed, epoch=epoch, rank=rank, world_size=world_size)
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=worker_init,
        multiprocessing_context="fork" if num_workers else None,
    )
    return list(loader)


def joined(ranks):
    """Global batches from those of the ranks."""
    return [[torch.cat([part[k] for part in parts]) for k in (0, 1)] for parts in zip(*ranks)]


def test_any_number_of_workers_and_ranks_sees_the_same_samples(root):
    expected = batches(root, epoch=4)
    assert len(expected) == 2 and expected[0][0].shape == (3, 3, 17, 17)
    others = [batches(root, 4, num_workers=2)]
    others += [joined([batches(root, 4, rank, size) for rank in range(size)]) for size in (2, 3)]
    for other in others:
        for (image, label), (other_image, other_label) in zip(expected, other):
            assert torch.equal(image, other_image) and torch.equal(label, other_label)


def test_epochs_and_seeds_differ(root):
    image = batches(root, epoch=4)[0][0]
    assert not torch.equal(image, batches(root, epoch=5)[0][0])
    assert not torch.equal(image, batches(root, epoch=4, seed=8)[0][0])


def test_an_index_alone_is_that_of_epoch_0(root):
    data = SemData("train", root, root / "train.txt", AUGMENT, seed=3)
    assert torch.equal(data[1][0], data[0, 1][0])
    assert not torch.equal(data[1][0], data[1, 1][0])


def test_the_global_random_state_has_no_say(root):
    data = SemData("train", root, root / "train.txt", AUGMENT)
    random.seed(0)
    first = data[0][0]
    random.seed(1)
    assert torch.equal(first, data[0][0])


def test_sample_random_numbers_are_the_same_in_every_process_and_version():
    assert [round(sample_rng(1, 2, 3).random(), 12), sample_rng(12, 3, 4).random() == sample_rng(1, 23, 4).random()] == [
        0.121957867126,
        False,
    ]


def parts(world_size, length=50, batch_size=16, **kwargs):
    kwargs = {"seed": 1, "epoch": 2, **kwargs}
    samplers = [EpochSampler(length, batch_size, rank=r, world_size=world_size, **kwargs) for r in range(world_size)]
    for sampler in samplers:
        assert len(list(sampler)) == len(sampler)
    return [list(sampler) for sampler in samplers]


def test_16_over_3_ranks_is_6_5_5():
    assert [[len(batch) for batch in rank] for rank in parts(3)] == [[6, 6, 6], [5, 5, 5], [5, 5, 5]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_world_size_deals_out_the_same_global_batches(world_size, drop_last):
    ranks = parts(world_size, drop_last=drop_last)
    alone = parts(1, drop_last=drop_last)[0]
    for i, batch in enumerate(alone):
        assert batch == [key for rank in ranks for key in (rank[i] if i < len(rank) else [])]
    indices = [index for batch in alone for _, index in batch]
    assert len(set(indices)) == len(indices) == (48 if drop_last else 50)
    assert all(epoch == 2 for batch in alone for epoch, _ in batch)


def test_a_rank_whose_part_of_the_tail_is_empty_has_one_batch_fewer():
    assert [len(rank) for rank in parts(4, drop_last=False)] == [4, 4, 3, 3]


def test_the_order_depends_on_seed_and_epoch_only():
    first = parts(1)[0]
    assert first == parts(1)[0]
    orders = {tuple(index for batch in parts(1, seed=s, epoch=e)[0] for _, index in batch) for s, e in ((1, 2), (2, 1), (1, 3))}
    assert len(orders) == 3
    sampler = EpochSampler(50, 16, seed=1, epoch=0)
    sampler.set_epoch(2)
    assert list(sampler) == first


def test_an_epoch_can_begin_at_a_later_batch():
    assert parts(2, start_batch=1) == [rank[1:] for rank in parts(2)]
    assert parts(3, start_batch=3, drop_last=False) == [rank[3:] for rank in parts(3, drop_last=False)]
    assert parts(1, start_batch=3) == [[]]
    sampler = EpochSampler(50, 16, seed=1, epoch=0, start_batch=2)
    sampler.set_epoch(2)
    assert list(sampler) == parts(1)[0]


def test_without_shuffle_the_order_is_that_of_the_list():
    ranks = parts(2, 7, 4, shuffle=False, drop_last=False)
    assert ranks == [[[(2, 0), (2, 1)], [(2, 4), (2, 5)]], [[(2, 2), (2, 3)], [(2, 6)]]]


def test_a_dataset_smaller_than_a_batch_is_an_error_when_the_last_is_dropped():
    with pytest.raises(
        ValueError, match=r"the dataset has 5 samples, less than one batch of batch_size = 16: lower batch_size"
    ):
        EpochSampler(5, 16, seed=0, epoch=0)
    assert [len(batch) for batch in EpochSampler(5, 16, seed=0, epoch=0, drop_last=False)] == [5]


def test_a_batch_smaller_than_the_world_is_an_error():
    with pytest.raises(ValueError, match=r"batch_size = 2 is less than the 3 processes"):
        EpochSampler(50, 2, seed=0, epoch=0, world_size=3)


class Threads(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return cv2.getNumThreads(), torch.get_num_threads()


def test_workers_run_one_thread():
    loader = torch.utils.data.DataLoader(Threads(), batch_size=None, num_workers=1, worker_init_fn=worker_init)
    assert list(next(iter(loader))) == [1, 1]
