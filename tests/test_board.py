import numpy as np
import pytest
from tensorboardX import SummaryWriter

from util.board import COMPARED, heat_map, log_start, log_validation
from util.config import ROOT, load_config
from util.metric import scores

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard")


@pytest.fixture
def events(tmp_path):
    cfg = load_config(ROOT / "config/toy/toy_pspnet18.yaml", ["base_lr", "0.03"])
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    with SummaryWriter(str(tmp_path)) as writer:
        log_start(writer, cfg)
        log_validation(writer, scores(confusion), confusion, ["road", "sky/cloud", "absent"], step=5)
    found = accumulator.EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def text(events, tag):
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_every_present_class_has_its_own_curve(events):
    assert events.Tags()["scalars"] == ["IoU_val/road", "IoU_val/sky_cloud"]
    (point,) = events.Scalars("IoU_val/road")
    assert (point.step, point.value) == (5, 0.75)


def test_classes_of_one_name_have_a_curve_each(tmp_path):
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 9]])
    with SummaryWriter(str(tmp_path)) as writer:
        log_validation(writer, scores(confusion), confusion, ["other", "other", "road"], step=5)
    found = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["scalars"] == ["IoU_val/other_0", "IoU_val/other_1", "IoU_val/road"]


def test_config_and_table_are_texts_and_the_confusion_is_a_picture(events):
    assert "    base_lr: 0.03\n" in text(events, "config") and "| 1 | sky/cloud | 0.8000 |" in text(events, "val/table")
    (image,) = events.Images("val/confusion")
    assert (image.step, image.height) == (5, 480) and image.width > 480


def test_runs_are_compared_by_settings_and_by_scalars_of_their_own(events):
    from tensorboard.plugins.hparams import metadata

    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert {metric.name.tag for metric in experiment.metric_infos} == {"mIoU_val", "mAcc_val", "allAcc_val", "loss_val"}
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(content).hparams
    assert settings["base_lr"].number_value == 0.03 and settings["arch"].string_value == "psp"
    assert set(settings) == set(COMPARED) - {"initmodel", "max_iter"}  # empty in this config


@pytest.mark.parametrize("K, side", [(1, 480), (3, 480), (19, 475), (150, 450), (500, 500)])
def test_the_heat_map_has_cells_of_one_size(K, side):
    picture = heat_map(np.eye(K, dtype=int), ["sky"] * K)
    assert picture.shape[0] == side and picture.dtype == np.uint8
    cells = picture[:, -side:].reshape(K, side // K, K, side // K, 3)
    assert (cells == cells[:, :1, :, :1]).all() and (cells[0, 0, 0, 0] == (24, 95, 190)).all()


def test_the_heat_map_shows_shares_of_rows_blue_where_right_and_orange_where_wrong():
    cells = heat_map(np.array([[1, 3], [0, 0]]), ["sea", "sky"])[:, -480:]
    right, wrong = cells[0, ::240].tolist()
    assert right == [140, 175, 222] and wrong[0] > wrong[1] > wrong[2]  # half of the colour for a quarter of the row
    assert (cells[240:] == 255).all()


@pytest.mark.parametrize("K, cell", [(2, 240), (40, 12), (41, 11)])
def test_the_rows_of_the_heat_map_are_named_where_letters_fit(K, cell):
    picture = heat_map(np.zeros((K, K), int), ["W" * 99, *[""] * (K - 1)])  # a class name may be any text
    strip = picture[:, : -K * cell]
    assert bool(strip.size) == (cell >= 12) and (strip[cell:] == 255).all()
    assert not strip.size or (strip[:, :4] == 255).all() and (strip[:cell] == 0).any()  # whole, in its row
