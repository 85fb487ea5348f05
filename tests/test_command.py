"""The command line: what each flag does to the resolved config, which words go together, and which do not."""

import os
import random

import pytest

from util.command import FLAGS, OPTIONS, parse_test, parse_train
from util.common import Mistake
from util.config import ROOT, find_config, load_config

TOY = "toy_pspnet18"
CITYSCAPES = "cityscapes_pspnet50"  # eight GPUs
DOC = """Train a network.

    python tool/train.py CONFIG
    torchrun tool/train.py CONFIG

A paragraph that is wider than a terminal mostly is, which is why the help cuts it into lines of a hundred characters or less.
"""
FLAGS_OF_TRAINING = (
    "--config --work-dir --load-from --resume-from --auto-resume --no-validate --gpu-id --gpus --gpu-ids --one-gpu --launcher "
    "--local-rank --dist-backend --seed --diff-seed --deterministic --cfg-options --options"
).split()
MMSEG_CONFIGS = (
    *(f"cityscapes_pspnet_{recipe}" for recipe in ("r50-d8_512x1024_40k", "r101-d8_512x1024_40k", "r50-d8_769x769_40k")),
    "ade20k_pspnet_r50-d8_512x512_80k",
    "voc2012_pspnet_r101-d8_512x512_20k",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Nobody has started this process; what a test changes in the environment ends with it."""
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE SLURM_PROCID SLURM_STEP_NUM_TASKS OMPI_COMM_WORLD_RANK".split()
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def words(argv):
    return argv.split() if isinstance(argv, str) else argv


def read(argv, parse=parse_train):
    """The resolved config of a command line."""
    config, overrides, _ = parse(words(argv), DOC)
    return load_config(config, overrides)


def notes(argv):
    return parse_train(words(argv), DOC)[2]


def error(argv, parse=parse_train):
    with pytest.raises(Mistake) as caught:
        read(argv, parse)
    return str(caught.value)


def help_of(parse, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], DOC)
    assert ended.value.code == 0
    return capsys.readouterr().out


# ---- flags ----


@pytest.mark.parametrize(
    "argv, key, value",
    [
        ("--work-dir exp/other", "save_path", str(ROOT / "exp/other")),
        ("--work-dir /tmp/20261122", "save_path", "/tmp/20261122"),
        (["--work-dir", "a: [b] #1's"], "save_path", str(ROOT / "a: [b] #1's")),
        ("--work-dir 20261122", "save_path", str(ROOT / "20261122")),  # YAML would read a number
        ("--load-from w.pth", "weight", str(ROOT / "w.pth")),
        ("--resume-from r.pth", "resume", str(ROOT / "r.pth")),
        ("--auto-resume", "resume", "auto"),
        ("--auto-resume --resume-from r.pth", "resume", str(ROOT / "r.pth")),
        ("--auto-resume --cfg-options resume_from=r.pth", "resume", str(ROOT / "r.pth")),
        ("--auto-resume --cfg-options resume_from=None", "resume", "auto"),
        ("--cfg-options resume_from=None", "resume", None),
        ("--no-validate", "evaluate", False),
        ("--gpu-id 3", "train_gpu", (3,)),
        ("--gpus 1", "train_gpu", (0,)),
        ("--gpus 4", "train_gpu", (0,)),
        ("--gpu-ids 2", "train_gpu", (2,)),
        ("--gpu-ids 2 0 1", "train_gpu", (2,)),
        ("--gpu-ids=2 --gpu-ids=0", "train_gpu", (2,)),
        ("--seed 5", "manual_seed", 5),
        ("--seed 0", "manual_seed", 0),
        ("diff_seed False", "diff_seed", False),
        ("--diff_seed --cfg-options diff_seed=True", "diff_seed", True),
        ("--deterministic", "deterministic", True),
        ("--dist_backend gloo", "dist_backend", "gloo"),
        ("--launcher none", "train_gpu", None),
        ("--local_rank 0", "train_gpu", None),
        ("--cfg-options epochs=3 base_lr=0.02", "epochs", 3),
        ("--options epochs=3", "epochs", 3),
    ],
)
def test_flag_sets_its_key_and_no_other(argv, key, value):
    plain, cfg = read(TOY), read([TOY, *words(argv)])
    assert getattr(cfg, key) == value
    changed = {name for name in vars(plain) if getattr(plain, name) != getattr(cfg, name)}
    follow = {"save_path": {"model_path", "save_folder"}, "epochs": {"base_lr", "model_path", "save_folder"}}
    assert changed <= {key} | follow.get(key, set())


def test_diff_seed_overrules_the_config(tmp_path):
    path = tmp_path / "c.yaml"
    text = (ROOT / "config/toy/toy_pspnet18.yaml").read_text()
    path.write_text(text.replace("TRAIN:\n", "TRAIN:\n  diff_seed: False\n"))
    assert read([str(path)]).diff_seed is False
    assert read([str(path), "--diff_seed"]).diff_seed is True


def test_work_dir_moves_what_the_test_reads_and_writes():
    cfg = read(f"{TOY} --work-dir /tmp/run/model", parse_test)
    assert cfg.model_path == "/tmp/run/model/train_epoch_9.pth" and cfg.save_folder == "/tmp/run/model/result/epoch_9/val/ss"


@pytest.mark.parametrize("form", [["--work-dir"], ["--cfg-options", "work_dir"]])
def test_two_work_dirs_share_no_file(form):
    def of(folder):
        return read([TOY, *form[:-1], f"{form[-1]}={folder}"], parse_test)

    assert of("exp/a").save_folder == str(ROOT / "exp/a/result/epoch_9/val/ss")
    assert of("exp/b").save_folder == str(ROOT / "exp/b/result/epoch_9/val/ss")


def test_work_dir_moves_the_plain_paths_of_an_original_config_too(tmp_path):
    text = (ROOT / "config/toy/toy_pspnet18.yaml").read_text().replace("{epochs}", "9")
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("'{save_path}/../", "'exp/toy/pspnet18/").replace("'{save_path}/", "'exp/toy/pspnet18/model/"))
    cfg = read([str(path), "--work-dir", "/tmp/run"], parse_test)
    assert (cfg.model_path, cfg.save_folder) == ("/tmp/run/train_epoch_9.pth", "/tmp/run/result/epoch_9/val/ss")


def test_work_dir_leaves_paths_alone_that_lie_elsewhere_or_are_given(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text((ROOT / "config/toy/toy_pspnet18.yaml").read_text().replace("'{save_path}/../", "'/elsewhere/"))
    assert read([str(path), "--work-dir", "/tmp/run"], parse_test).save_folder == "/elsewhere/result/epoch_9/val/ss"
    cfg = read([TOY, "--work-dir", "/tmp/run", "save_folder", "/given", "TEST.model_path", "{save_path}/a.pth"], parse_test)
    assert (cfg.save_folder, cfg.model_path) == ("/given", "/tmp/run/a.pth")


def test_save_path_as_a_key_keeps_the_layout_of_the_config():
    cfg = read(f"{TOY} save_path exp/mine/model", parse_test)
    assert cfg.save_folder == str(ROOT / "exp/mine/result/epoch_9/val/ss")


def test_one_gpu_keeps_the_first_of_the_config_and_leaves_a_cpu_a_cpu():
    assert read(CITYSCAPES).train_gpu == tuple(range(8))
    assert read(f"{CITYSCAPES} --one-gpu").train_gpu == (0,)
    assert read([CITYSCAPES, "--one-gpu", "train_gpu", "[5, 6]"]).train_gpu == (5,)
    assert read(f"{CITYSCAPES} --one-gpu --gpu-id 3").train_gpu == (3,)
    assert read(f"{TOY} --one-gpu").train_gpu is None
    assert notes(f"{CITYSCAPES} --one-gpu") == ["train_gpu: [0], as --one-gpu asks"]
    assert notes(f"{TOY} --one-gpu") == []


def test_one_gpu_does_not_take_the_gpus_of_a_launchers_processes(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert read(f"{CITYSCAPES} --one-gpu").train_gpu == tuple(range(8))


@pytest.mark.parametrize(
    "argv, remedy",
    [
        ("--gpus 4", "--gpus is deprecated, use --gpu-id 0; for several GPUs: sh tool/train_dist.sh CONFIG NUM_GPUS"),
        (
            "--gpu-ids 3 4",
            "--gpu-ids is deprecated, use --gpu-id with the first of them; for several GPUs: "
            "sh tool/train_dist.sh CONFIG NUM_GPUS",
        ),
        ("--options epochs=3", "--options is deprecated, use --cfg-options"),
    ],
)
def test_deprecated_flag_is_noted_with_what_to_use(argv, remedy):
    assert notes(f"{TOY} {argv}") == [remedy]


def test_other_flags_bring_no_notes():
    assert notes(f"{TOY} --gpu-id 1 --seed 3 --auto-resume --cfg-options epochs=3") == []


@pytest.mark.parametrize("flag", [flag for flag in FLAGS_OF_TRAINING if "-" in flag[2:]])
def test_underscores_are_dashes(flag):
    values = {"--gpu-id": "1", "--gpu-ids": "1", "--local-rank": "0", "--dist-backend": "gloo", "--cfg-options": "epochs=2"}
    value = {"--work-dir": "a", "--load-from": "a", "--resume-from": "a", **values}.get(flag)
    underscores = "--" + flag[2:].replace("-", "_")
    written = [[flag, value], [underscores, value], [f"{underscores}={value}"]] if value else [[flag], [underscores]]
    read_as = [parse_train([TOY, *more], DOC) for more in written]
    assert all(one == read_as[0] for one in read_as)


# ---- K=V ----


@pytest.mark.parametrize(
    "option, key, value",
    [
        ("train_gpu=0,1", "train_gpu", (0, 1)),
        ("train_gpu=[0,1]", "train_gpu", (0, 1)),
        ("train_gpu=(0,1)", "train_gpu", (0, 1)),
        ("train_gpu=1", "train_gpu", (1,)),
        ("TEST.scales=[0.5, 1.0]", "scales", (0.5, 1.0)),
        ('scales="[0.5,1.0]"', "scales", (0.5, 1.0)),  # where the shell leaves the quotes
        ("base_size=(2048,1024)", "base_size", (2048, 1024)),
        ("checkpoint_layers=layer3,layer4", "checkpoint_layers", ("layer3", "layer4")),
        ("class_weights=auto", "class_weights", "auto"),
        ("param_rules=[{name: 'layer(3)*', lr_factor: 0.1}]", "param_rules", ({"name": "layer(3)*", "lr_factor": 0.1},)),
        ("augmentation=[{Resize: {scale: (0.5,1)}}]", "augmentation", ({"Resize": {"scale": [0.5, 1]}},)),
        ("manual_seed=None", "manual_seed", None),
        ("manual_seed=none", "manual_seed", None),
        ("manual_seed=null", "manual_seed", None),
        ("manual_seed=", "manual_seed", None),
        ("format=none", "format", "none"),  # a value of its own
        ("evaluate=False", "evaluate", False),
        ("TRAIN.base_lr=0.02", "base_lr", 0.02),
        ("TRAIN.train_gpu=0,1", "train_gpu", (0, 1)),
        ("weight_decay=5e-4", "weight_decay", 5e-4),
        ("rotate_min=-7", "rotate_min", -7.0),
        ("save_path=/tmp/a,b (1)", "save_path", "/tmp/a,b (1)"),  # text stays as it is
        ("dist_url=tcp://10.0.0.1:29500", "dist_url", "tcp://10.0.0.1:29500"),
        ("model_path={save_path}/x=1.pth", "model_path", str(ROOT / "exp/toy/pspnet18/model/x=1.pth")),
        ("model_path=[a.pth,b.pth]", "model_path", (str(ROOT / "a.pth"), str(ROOT / "b.pth"))),
        ("model_path=(a.pth,b.pth)", "model_path", (str(ROOT / "a.pth"), str(ROOT / "b.pth"))),
        ("model_path=a.pth,b.pth", "model_path", (str(ROOT / "a.pth"), str(ROOT / "b.pth"))),
        ("model_path=a (1, 2).pth", "model_path", str(ROOT / "a (1, 2).pth")),
        # MMSegmentation's
        ("optimizer.lr=0.02", "base_lr", 0.02),
        ("optimizer.momentum=0.8", "momentum", 0.8),
        ("optimizer.weight_decay=5e-4", "weight_decay", 5e-4),
        ("lr_config.power=1", "power", 1.0),
        ("lr_config.min_lr=1e-4", "min_lr", 1e-4),
        ("runner.max_iters=20000", "max_iter", 20000),
        ("train_cfg.max_iters=20000", "max_iter", 20000),
        ("train_cfg.val_interval=2000", "iter_interval", 2000),
        ("optim_wrapper.optimizer.lr=0.02", "base_lr", 0.02),
        ("optim_wrapper.optimizer.weight_decay=0.02", "weight_decay", 0.02),
        ("checkpoint_config.interval=500", "iter_interval", 500),
        ("evaluation.interval=500", "iter_interval", 500),
        ("log_config.interval=7", "print_freq", 7),
        ("model.backbone.depth=101", "layers", 101),
        ("model.decode_head.num_classes=12", "classes", 12),
        ("model.auxiliary_head.num_classes=12", "classes", 12),
        ("load_from=w.pth", "weight", str(ROOT / "w.pth")),
        ("resume_from=r.pth", "resume", str(ROOT / "r.pth")),
        ("work_dir=exp/b", "save_path", str(ROOT / "exp/b")),
    ],
)
def test_option_is_understood_in_the_forms_of_mmsegmentation(option, key, value):
    other = ["class_weights", "null"] if key == "classes" else []  # toy's are for nine classes
    assert getattr(read([TOY, *other, "--cfg-options", option]), key) == value


@pytest.mark.parametrize("name", ["checkpoint_config", "evaluation"])
def test_an_interval_of_mmsegmentation_alone_is_noted_as_that_of_both(name):
    (note,) = notes(f"{TOY} --cfg-options {name}.interval=500")
    assert f"{name}.interval=500: sets iter_interval (checkpoints and validations have one interval" in note
    assert notes(f"{TOY} --cfg-options checkpoint_config.interval=500 evaluation.interval=500") == []


def test_options_end_where_no_equals_sign_follows():
    cfg = read(f"{TOY} --cfg-options epochs=2 momentum=0.8 base_lr 0.1 --cfg-options=power=1 model_path a=b.pth")
    assert (cfg.epochs, cfg.momentum, cfg.base_lr, cfg.power) == (2, 0.8, 0.1, 1.0)
    assert cfg.model_path == str(ROOT / "a=b.pth")
    assert read(["--cfg-options", "epochs=2", TOY]).epochs == 2


def test_last_of_two_equal_options_counts():
    assert read(f"{TOY} --cfg-options epochs=2 epochs=3").epochs == 3
    assert read(f"{TOY} --cfg-options epochs=2 --cfg-options epochs=4").epochs == 4


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--cfg-options", "argument --cfg-options: expected one argument"),
        ("--cfg-options base_lr 0.1", "--cfg-options: expected K=V, not 'base_lr'"),
        ("--cfg-options=epochs", "--cfg-options: expected K=V, not 'epochs'"),
        ("--cfg-options =3", "expected K=V, not '=3'"),
        ("--options a=1 --cfg-options b=2", "argument --cfg-options: not allowed with argument --options"),
        ("--cfg-options epoch=3", "unknown key (did you mean epochs?)"),
        ("--cfg-options model.decode_head.channels=256", "model.decode_head.channels: unknown key"),
        ("--cfg-options TEST.base_lr=1", "TEST.base_lr: unknown key (did you mean"),
        ("--cfg-options data.samples_per_gpu=2", "batch_size is that of all GPUs together; give batch_size=2 times"),
        ("--cfg-options data.workers_per_gpu=4", "workers are those of all GPUs together; give workers=4 times"),
        ("--cfg-options scales=[(1,2),(3,4)]", "scales: expected a number, not [1, 2]"),  # a list of lists it is
        ("--cfg-options epochs=many", "epochs: expected a whole number, not 'many'"),
    ],
)
def test_option_that_cannot_be_meant_is_explained(argv, message):
    assert message in error(f"{TOY} {argv}")


# ---- KEY VALUE, and the order of words ----


def test_forms_of_the_original_and_of_the_port_mean_the_same():
    forms = [
        f"--config {ROOT}/config/toy/toy_pspnet18.yaml base_lr 0.1 --seed 3 epochs 4 --work-dir a",
        "--seed 3 --config config/toy/toy_pspnet18.yaml base_lr 0.1 --work-dir a epochs 4",
        f"{TOY} --seed 3 --work-dir a base_lr 0.1 epochs 4",
        f"--work-dir a {TOY} base_lr 0.1 --seed=3 epochs 4",
        f"{TOY} base_lr 0.1 epochs --seed 3 --work-dir=a 4",
        f"--gpu-ids 0 {TOY} base_lr 0.1 --seed 3 epochs 4 --work-dir a train_gpu 0",
    ]
    configs = [vars(read(form)) | {"path": None, "train_gpu": None} for form in forms]
    assert all(cfg == configs[0] for cfg in configs)
    assert (configs[0]["base_lr"], configs[0]["epochs"], configs[0]["manual_seed"]) == (0.1, 4, 3)


@pytest.mark.parametrize("form", [[TOY], ["--config", TOY], ["--seed", "3", TOY]])
def test_values_that_look_like_something_else(form):
    pairs = ["rotate_min", "-10", "rotate_max", "-.5", "min_lr", "-1e-2", "scales", "[0.5, 1]", "train_gpu", ""]
    config, overrides, _ = parse_train([*form, *pairs], DOC)
    assert overrides[: len(pairs)] == pairs
    cfg = load_config(config, [*overrides, "min_lr", "0"])
    assert (cfg.rotate_min, cfg.rotate_max, cfg.scales, cfg.train_gpu) == (-10.0, -0.5, (0.5, 1.0), None)


def test_last_of_two_equal_keys_counts():
    assert read(f"{TOY} epochs 2 TRAIN.epochs 3").epochs == 3


@pytest.mark.parametrize(
    "argv, message",
    [
        ("", "which experiment? Give `python tool/train.py CONFIG`"),
        ("--seed 3", "which experiment?"),
        (f"{TOY} epochs", "KEY VALUE pairs, and 'epochs' has no partner"),
        (f"{TOY} epochs 2 --seed 3 base_lr", "KEY VALUE pairs, and 'base_lr' has no partner"),
        (f"{TOY} epochs=2 base_lr=0.1", "KEY VALUE pairs: write epochs 2"),
        (f"{TOY} --sed 3", "--sed: unknown flag (did you mean --seed?)"),
        (f"{TOY} --work 3", "--work: unknown flag"),  # no abbreviations: they would change their meaning with the next flag
        (f"{TOY} --base_lr 0.1", "--base-lr: unknown flag; write base_lr VALUE"),
        (f"{TOY} --amp --resume", "--amp: unknown flag; write precision auto, or precision fp16"),
        (f"{TOY} --resume", "--resume: unknown flag; give --auto-resume, or resume FILE"),
        (f"{TOY} --cfg-options train_dataloader.batch_size=2", "batch_size is that of all GPUs together; give batch_size=2"),
        (f"{TOY} --nonsense=3", "--nonsense: unknown flag (python tool/train.py --help lists the flags)"),
        (f"{TOY} -x", "-x: unknown flag"),
        (f"{TOY} --seed", "--seed: expected one argument"),
        (f"{TOY} --seed three", "--seed: invalid int value: 'three'"),
        (f"{TOY} --gpu-ids one", "argument --gpu-ids: invalid int value: 'one'"),
        (f"{TOY} --gpus 0", "--gpus 0: must be 1 or more; on the CPU: train_gpu null"),
        (f"{TOY} --launcher torchrun", "--launcher: invalid choice: 'torchrun'"),
        (f"{TOY} --dist-backend mpi", "dist_backend: 'mpi' is not one of nccl, gloo"),
        (f"{TOY} --format cityscapes", "--format: unknown flag"),
    ],
)
def test_word_that_is_not_understood_is_explained(argv, message):
    assert message in error(argv)


@pytest.mark.parametrize(
    "argv, both",
    [
        ("--work-dir a save_path b", "save_path b and --work-dir a both set save_path"),
        ("--work-dir a --cfg-options work_dir=b", "--work-dir a and --cfg-options work_dir=b both set save_path"),
        ("--seed 3 TRAIN.manual_seed 4", "TRAIN.manual_seed 4 and --seed 3 both set manual_seed"),
        ("--seed 3 --cfg-options manual_seed=4", "--seed 3 and --cfg-options manual_seed=4 both set manual_seed"),
        ("--no-validate evaluate True", "evaluate True and --no-validate both set evaluate"),
        ("--gpu-id 1 train_gpu 0", "train_gpu 0 and --gpu-id 1 both set train_gpu"),
        ("--gpu-ids 1 2 train_gpu 0", "train_gpu 0 and --gpu-ids 1 2 both set train_gpu"),
        ("--auto-resume resume a.pth", "resume a.pth and --auto-resume both set resume"),
        ("--resume-from a.pth resume auto", "resume auto and --resume-from a.pth both set resume"),
        ("--deterministic deterministic False", "deterministic False and --deterministic both set deterministic"),
        ("--cfg-options base_lr=1 optimizer.lr=2", "base_lr=1 and --cfg-options optimizer.lr=2 both set base_lr"),
        (
            "--cfg-options checkpoint_config.interval=4000 evaluation.interval=2000",
            "evaluation.interval=2000 both set iter_interval (checkpoints and validations have one interval",
        ),
    ],
)
def test_two_values_for_one_key_are_refused_and_both_are_named(argv, both):
    assert f"{both}" in error(f"{TOY} {argv}") and error(f"{TOY} {argv}").endswith("; give one")


def test_all_contradictions_are_reported_at_once():
    assert len(error(f"{TOY} --seed 3 manual_seed 4 --no-validate evaluate True").splitlines()) == 2


@pytest.mark.parametrize(
    "argv",
    [
        "--work-dir a save_path a",
        "--seed 3 manual_seed 3",
        "--gpu-id 1 train_gpu [1]",
        "--cfg-options base_lr=0.01 optimizer.lr=1e-2",
        "--cfg-options checkpoint_config.interval=4000 evaluation.interval=4000",
        "class_weights null --cfg-options model.decode_head.num_classes=12 model.auxiliary_head.num_classes=12",
        "--auto-resume resume auto",
    ],
)
def test_one_value_said_twice_is_no_contradiction(argv):
    read(f"{TOY} {argv}")


@pytest.mark.parametrize("two", ["--gpus 1 --gpu-id 0", "--gpu-id 0 --gpu-ids 0 1", "--gpus 1 --gpu-ids 0"])
def test_ways_to_name_a_gpu_exclude_each_other(two):
    assert "not allowed with argument --gpu" in error(f"{TOY} {two}")


@pytest.mark.parametrize("flag", ["--gpus 2", "--gpu-id 1", "--gpu-ids 0 1"])
def test_one_gpu_is_refused_under_a_launcher_with_the_reason(flag, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    message = error(f"{CITYSCAPES} {flag} --launcher pytorch")
    assert f"{flag.split()[0]} is for one process, and --launcher pytorch starts several" in message


# ---- launchers ----

ENVIRONMENT = {
    "pytorch": ({"RANK": "0"}, "torchrun --nproc-per-node GPUS tool/train.py"),
    "slurm": ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "srun --ntasks GPUS python tool/train.py"),
    "mpi": ({"OMPI_COMM_WORLD_RANK": "0"}, "mpirun -n GPUS python tool/train.py"),
}


@pytest.mark.parametrize("launcher", ENVIRONMENT)
def test_launcher_that_has_not_started_the_process_is_refused_with_the_command(launcher, monkeypatch):
    variables, command = ENVIRONMENT[launcher]
    for name, value in variables.items():
        message = error(f"{TOY} --launcher {launcher}")
        assert f"{name} is not in the environment" in message and command in message
        monkeypatch.setenv(name, value)
    assert read(f"{TOY} --launcher {launcher}").train_gpu is None


@pytest.mark.parametrize(
    "processes, more, gpus",
    [
        (4, [], (0, 1, 2, 3, 4, 5, 6, 7)),  # each takes the one of its number
        (9, [], (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        (9, ["train_gpu", "[3, 4]"], (3, 4)),  # said, so left as it is
        (2, ["train_gpu", "null"], None),
    ],
)
def test_number_of_processes_determines_how_many_gpus(processes, more, gpus, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    by = ("the launcher", []), ("the launcher", ["--launcher", "none"]), ("pytorch", ["--launcher", "pytorch"])
    for starter, flags in by:
        assert read([CITYSCAPES, *more, *flags]).train_gpu == gpus
        assert read([TOY, *flags]).train_gpu is None
        note = f"train_gpu: {list(range(9))}, one for each process that {starter} has started"
        assert notes([CITYSCAPES, *more, *flags]) == ([note] if len(gpus or ()) == 9 else [])


def test_the_test_of_a_config_for_one_gpu_has_one_for_each_process_of_a_launcher(monkeypatch):
    assert read(CITYSCAPES, parse_test).test_gpu == (0,)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert read(CITYSCAPES, parse_test).test_gpu == tuple(range(8))


def test_local_rank_goes_into_the_environment_unless_it_is_there(monkeypatch):
    for flag in ("--local-rank=3", "--local_rank=3"):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        parse_train([TOY, flag], DOC)
        assert os.environ["LOCAL_RANK"] == "3"
    monkeypatch.setenv("LOCAL_RANK", "1")
    parse_train([TOY, "--local-rank", "3"], DOC)
    assert os.environ["LOCAL_RANK"] == "1"


# ---- test ----


def test_flags_of_a_training_do_not_disturb_the_test_that_follows():
    flags = "--seed 3 --diff_seed --deterministic --no-validate --auto-resume --load-from w.pth --work-dir a base_lr 0.1"
    cfg = read(f"{CITYSCAPES} {flags} --cfg-options runner.max_iters=10 --gpu-id 5", parse_test)
    assert cfg.save_path == str(ROOT / "a") and cfg.model_path.startswith(str(ROOT / "a"))
    assert cfg.test_gpu == (5,) and cfg.train_gpu == tuple(range(8))


def test_server_format_is_a_flag_of_the_test():
    assert read(f"--config {CITYSCAPES} --format cityscapes", parse_test).format == "cityscapes"
    assert "format ade20k and --format cityscapes" in error(f"{CITYSCAPES} --format cityscapes format ade20k", parse_test)
    assert "--eval: unknown flag; leave it out" in error(f"{CITYSCAPES} --eval mIoU", parse_test)
    assert '--tta: unknown flag; write scales "[0.5' in error(f"{CITYSCAPES} --tta", parse_test)
    assert "--show-dir: unknown flag; write save_folder FOLDER" in error(f"{CITYSCAPES} --show-dir seen", parse_test)
    assert "format: 'coco' is not one of none, cityscapes, ade20k, voc2012" in error(f"{CITYSCAPES} --format coco", parse_test)


# ---- any words ----


@pytest.mark.parametrize("parse", [parse_train, parse_test])
def test_any_words_are_read_or_refused_with_a_message(parse, capsys):
    rng = random.Random(parse.__name__)
    words = [TOY, CITYSCAPES, *FLAGS_OF_TRAINING, *FLAGS_OF_TRAINING, "", " ", "scales=[(1,", "a=\0", "9" * 5000, "[" * 500]
    words += "--format --help -h -- - -x --x= = epochs base_lr TRAIN.layers save_path resume K=V epochs=3 work_dir=a".split()
    words += ["optimizer.lr=1e999", "0", "3", "-1", "-1e-2", "pytorch", "null", "é", "\udcff", "a b", "--a b"]
    words += ["train_gpu=0,'", "param_rules=[{name: *a}]", "cache={cache}", "%s", "--seed=%(x)s", "--gpus=-1", "x" * 5000]
    read_ones = 0
    for _ in range(1500):
        argv = [TOY] * rng.randrange(2) + [rng.choice(words) for _ in range(rng.randrange(6))]
        try:
            config, overrides, _ = parse(argv, DOC)
            assert config.is_file() and len(overrides) % 2 == 0
            load_config(config, overrides)
            read_ones += 1
        except Mistake as mistake:
            assert str(mistake).strip()
        except SystemExit as ended:
            assert ended.code == 0 and {"--help", "-h"} & set(argv)
    assert read_ones > 100


# ---- help ----


def test_help_of_training_lists_every_flag_in_its_group(capsys):
    text = help_of(parse_train, capsys)
    titles = ("Experiment", "Where a run starts and what it does", "Devices and processes", "Reproducibility", "Settings")
    places = [text.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    assert all(f"\n  {flag}" in text for flag in FLAGS_OF_TRAINING)
    assert "--format" not in text
    flat = " ".join(text.split())
    for flag in (flag for title in titles for flag in FLAGS[title] if flag.sets not in (None, OPTIONS)):
        assert f"{flag.help} [{flag.sets}]" in flat  # the key that it sets
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("usage: python tool/train.py CONFIG [flags] [KEY VALUE ...]")
    assert "\n    python tool/train.py CONFIG\n    torchrun tool/train.py CONFIG\n" in text  # commands are not run together


def test_help_of_the_test_shows_what_it_uses(capsys):
    text = help_of(parse_test, capsys)
    assert text.startswith("usage: python tool/test.py CONFIG")
    assert "--format" in text and "cityscapes, ade20k or" in text and "--work-dir" in text and "--cfg-options" in text
    assert "--seed" not in text and "Where a run starts" not in text
    assert max(map(len, text.splitlines())) <= 100


# ---- names ----


@pytest.fixture
def root(tmp_path):
    """A project with the names of shipped configs, empty files."""
    for stem in (*MMSEG_CONFIGS, "cityscapes_pspnet50", "toy_pspnet18"):
        path = tmp_path / "config" / stem.partition("_")[0] / f"{stem}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    "name, stem",
    [
        ("cityscapes_pspnet50", "cityscapes_pspnet50"),
        ("cityscapes_pspnet50.yaml", "cityscapes_pspnet50"),
        ("config/cityscapes/cityscapes_pspnet50.yaml", "cityscapes_pspnet50"),
        ("pspnet_r50-d8_512x1024_40k_cityscapes", "cityscapes_pspnet_r50-d8_512x1024_40k"),
        ("pspnet_r50-d8_512x1024_40k_cityscapes.py", "cityscapes_pspnet_r50-d8_512x1024_40k"),
        ("configs/pspnet/pspnet_r101-d8_512x1024_40k_cityscapes.py", "cityscapes_pspnet_r101-d8_512x1024_40k"),
        ("/far/away/configs/pspnet/pspnet_r50-d8_769x769_40k_cityscapes.py", "cityscapes_pspnet_r50-d8_769x769_40k"),
        ("cityscapes_pspnet_r50-d8_512x1024_40k", "cityscapes_pspnet_r50-d8_512x1024_40k"),
        ("pspnet_r50-d8_512x512_80k_ade20k", "ade20k_pspnet_r50-d8_512x512_80k"),
        ("pspnet_r101-d8_512x512_20k_voc12aug", "voc2012_pspnet_r101-d8_512x512_20k"),
        ("voc12aug_pspnet_r101-d8_512x512_20k", "voc2012_pspnet_r101-d8_512x512_20k"),
        ("voc2012_pspnet_r101-d8_512x512_20k", "voc2012_pspnet_r101-d8_512x512_20k"),
        ("pspnet_r50-d8_4xb2-40k_cityscapes-512x1024", "cityscapes_pspnet_r50-d8_512x1024_40k"),  # of its version 1
        ("configs/pspnet/pspnet_r101-d8_4xb4-20k_voc12aug-512x512.py", "voc2012_pspnet_r101-d8_512x512_20k"),
    ],
)
def test_config_is_found_by_path_and_by_either_name(root, name, stem, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert find_config(name, root) == root / "config" / stem.partition("_")[0] / f"{stem}.yaml"


def test_path_from_here_or_absolute_comes_before_names(root, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    mine, theirs = here / "toy_pspnet18.yaml", here / "configs/pspnet/pspnet_r50-d8_512x1024_40k_cityscapes.py"
    theirs.parent.mkdir(parents=True)
    mine.touch()
    theirs.touch()  # as in a checkout of MMSegmentation, but it is no YAML
    assert find_config("toy_pspnet18.yaml", root).resolve() == mine
    assert find_config("toy_pspnet18", root).parent == root / "config/toy"
    assert find_config(str(mine), root) == mine
    found = find_config("configs/pspnet/pspnet_r50-d8_512x1024_40k_cityscapes.py", root)
    assert found.name == "cityscapes_pspnet_r50-d8_512x1024_40k.yaml"


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("cityscapes_pspnet51", "did you mean cityscapes_pspnet50.yaml"),
        ("pspnet_r50-d8_512x1024_41k_cityscapes", "did you mean pspnet_r50-d8_512x1024_40k_cityscapes or"),
        ("cityscapes_pspnet_r50-d8_512x1024_41k", "cityscapes_pspnet_r50-d8_512x1024_40k"),
        ("mine/cityscapes_pspnet50.yaml", "did you mean cityscapes_pspnet50.yaml"),  # not the shipped one without a word
        ("zzz", "config/ has the shipped ones"),
    ],
)
def test_unknown_config_suggests_the_nearest_names_of_both_kinds(root, name, nearest):
    with pytest.raises(Mistake, match="no such config file") as caught:
        find_config(name, root)
    assert str(caught.value).startswith(f"{name}: ") and nearest in str(caught.value)


def test_shipped_recipes_of_mmsegmentation_have_their_names():
    for path in ROOT.glob("config/*/*_r*-d8_*.yaml"):
        dataset, _, recipe = path.stem.partition("_")
        dataset = {"voc2012": "voc12aug"}.get(dataset, dataset)
        assert find_config(f"configs/pspnet/{recipe}_{dataset}.py") == path
