import os
import signal

if os.environ.get("TEST_DEVICE") != "cuda":  # which `sh tool/check.sh --gpu` sets
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the suite means the same on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin make a busy machine fifty times slower

import cv2
import pytest
import torch
from processes import ONE_BLOCK, small_training

from model import resnet

signal.signal(signal.SIGHUP, lambda *_: None)  # under nohup too the programs that tests start listen, as they do by default
torch.set_num_threads(1)  # tiny networks take half as long again on two
cv2.setNumThreads(0)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Folder of a very small toy dataset: 13 training and 5 validation images of 48x64."""
    from tool.prepare import main

    root = tmp_path_factory.mktemp("toy")
    main(["toy", "--out", str(root), "--train", "13", "--val", "5", "--size", "48x64"])
    return root


@pytest.fixture(scope="module")
def narrow():
    """Networks with an eighth of the channels and, ResNet-18, of one block a stage, for tests of the programs: steps and
    checkpoints take less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.resnet.WIDTH", 8)
        patch.setitem(resnet.BLOCKS, 18, ONE_BLOCK)
        yield


@pytest.fixture(scope="module")
def eighth():
    """Networks with an eighth of the channels, of as many blocks as a ResNet-18 has: tool/convert.py counts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.resnet.WIDTH", 8)
        yield


@pytest.fixture
def one_block(monkeypatch):
    """ResNet-18 as wide as it is, of one block a stage, for tests that compare memory or count no blocks."""
    monkeypatch.setitem(resnet.BLOCKS, 18, ONE_BLOCK)


@pytest.fixture
def full_size(monkeypatch):
    """Networks as they are, for one test among those of narrow ones."""
    monkeypatch.setattr("model.resnet.WIDTH", 64)
    monkeypatch.setitem(resnet.BLOCKS, 18, (resnet.BasicBlock, (2, 2, 2, 2)))


@pytest.fixture(scope="module")
def two_threads():
    """As many as there were when the golden numbers were made; on one, rounding is another."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def toy_options(toy, tmp_path):
    """KEY VALUE overrides that make config/toy/toy_pspnet18.yaml train in seconds: 3 iterations an epoch, two epochs."""
    return small_training(toy, save_path=tmp_path / "exp/model", print_freq=2)
