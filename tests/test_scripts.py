"""The shell wrappers as a user runs them: in subprocesses, from another directory."""

import importlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from processes import copy_project, free_port

from util import start
from util.config import ROOT

SCRIPTS = sorted((ROOT / "tool").glob("*.sh"))
PROGRAMS = sorted(path.name for path in (ROOT / "tool").glob("*.py") if path.name != "requirements.py")
TINY = "train_h 33 train_w 33 test_h 33 test_w 33 base_size 64 batch_size 4 epochs 2 eval_freq 2 workers 1".split()


@pytest.fixture
def project(toy, tmp_path):
    """A copy of the project, spaces in its name, with a very small toy dataset."""
    root = copy_project(tmp_path / "a copy")
    for name in ("image", "label", "list"):
        (root / "dataset/toy" / name).symlink_to(toy / name)
    return root


def sh(root, script, *arguments, first_in_path=Path(sys.executable).parent):
    """Run a script from a directory that is not the project's."""
    environment = {**os.environ, "PATH": f"{first_in_path}:{os.environ['PATH']}", "VIRTUAL_ENV": ""}
    command = ["sh", root / "tool" / script, *map(str, arguments)]
    return subprocess.run(command, cwd=root.parent, env=environment, capture_output=True, text=True)


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_script_is_posix_sh_that_parses(script):
    shell = shutil.which("dash") or "sh"
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_train_then_test_then_demo_on_toy(project):
    done = sh(project, "train.sh", "toy", "pspnet18", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    exp = project / "exp/toy/pspnet18"
    assert (exp / "snapshot/tool/train.py").read_text() == (ROOT / "tool/train.py").read_text()
    assert (exp / "snapshot/dataset/server.py").is_file()
    assert (exp / "snapshot/toy_pspnet18.yaml").is_file() and (exp / "snapshot/model/pspnet.py").is_file()
    assert (exp / "model/train_epoch_2.pth").is_file() and list((exp / "model").glob("train-*.log"))
    result = exp / "result/epoch_2/val/ss"
    assert len(list((result / "gray").glob("*.png"))) == len(list((result / "color").glob("*.png"))) == 5
    score = json.loads((result / "result.json").read_text())
    assert score["protocol"]["epoch"] == 2 and 0 < score["allAcc"] < 1
    assert f"mIoU/mAcc/allAcc {score['mIoU']:.4f}" in done.stdout

    # The best epoch is the second, which alone was validated: the same weights score the same through test.sh.
    again = sh(project, "test.sh", "toy", "pspnet18", *TINY, "model_path", "{save_path}/model_best.pth", "save_folder", "exp/b")
    assert again.returncode == 0, again.stderr
    assert json.loads((project / "exp/b/result.json").read_text())["mIoU"] == score["mIoU"]

    command = [sys.executable, project / "tool/demo.py", "--config", project / "config/toy/toy_pspnet18.yaml"]
    pictures = project / "dataset/toy/image/val"
    demo = subprocess.run(
        [*command, "--image", pictures, "--out", "seen", *TINY], cwd=project.parent, capture_output=True, text=True
    )
    assert demo.returncode == 0, demo.stderr
    assert len(list((project.parent / "seen").glob("*_overlay.png"))) == 5


def test_failed_training_ends_the_script_with_its_status_and_without_a_test(project):
    done = sh(project, "train.sh", "toy", "pspnet18", *TINY, "batch_size", 1)
    assert done.returncode == 1 and "TRAIN.batch_size" in done.stderr
    assert not (project / "exp/toy/pspnet18/result").exists() and "Eval" not in done.stdout


def test_config_form_trains_without_a_test(project):
    flags = ["--work-dir", "exp/port", "--no-validate", "--seed", 3, "--cfg-options", "optimizer.lr=0.02"]
    done = sh(project, "train.sh", "toy_pspnet18", *flags, *TINY, "epochs", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "exp/port/train_epoch_1.pth").is_file()
    config = yaml.safe_load((project / "exp/port/config.yaml").read_text())["TRAIN"]
    assert (config["base_lr"], config["manual_seed"], config["evaluate"], config["epochs"]) == (0.02, 3, False, 1)
    assert "Start Evaluation" not in done.stdout and {path.name for path in (project / "exp").iterdir()} == {"port"}


def test_flags_of_training_reach_the_test_that_follows(project):
    flags = ["--work-dir", "exp/moved/model", "--no-validate", "--seed", 3, "--options", "optimizer.lr=0.02"]
    done = sh(project, "train.sh", "toy", "pspnet18", *TINY, "epochs", 1, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "exp/moved/model/train_epoch_1.pth").is_file()
    assert (project / "exp/moved/model/result/epoch_1/val/ss/result.json").is_file()


def test_train_dist_starts_a_process_for_each_gpu_it_is_told(project, monkeypatch):
    monkeypatch.setenv("PORT", str(free_port()))
    flags = ["--work-dir", "exp/dist", "--no-validate", "--dist-backend", "gloo"]
    done = sh(project, "train_dist.sh", project / "config/toy/toy_pspnet18.yaml", 2, *TINY, "epochs", 1, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 process(es) on cpu" in done.stdout and (project / "exp/dist/train_epoch_1.pth").is_file()


@pytest.fixture
def calls(tmp_path):
    """Makes a Python that only notes its words, one call a list; the tool/requirements.py that comes first is left out."""
    log = tmp_path / "calls.json"
    note = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))"
    executable(tmp_path / "bin/python", f'#!/bin/sh\nexec "{sys.executable}" -c "{note}" "$@"\n')
    return lambda: [json.loads(line) for line in log.read_text().splitlines()][1:]


@pytest.mark.parametrize("script, number", [("train.sh", []), ("train_dist.sh", ["3"])])
def test_config_may_be_a_file_of_the_directory_that_one_is_in(project, tmp_path, calls, script, number):
    where = "--nnodes 1 --node-rank 0 --nproc-per-node 3 --master-addr 127.0.0.1 --master-port 29500".split()
    mine, theirs = project.parent / "my own.yaml", "configs/pspnet/pspnet_r50-d8_512x1024_40k_cityscapes.py"
    mine.touch()
    for name, config in [("pspnet_r50", "pspnet_r50"), ("config/a.yaml", "config/a.yaml"), ("my own.yaml", str(mine)),
                         (mine, str(mine)), (theirs, theirs)]:  # fmt: skip
        assert sh(project, script, name, *number, "a b", "[0, 1]", "--x", first_in_path=tmp_path / "bin").returncode == 0
        start = ["-m", "util.distributed", *where] if number else []
        more = ["--launcher", "pytorch"] if number else ["--one-gpu"]
        assert calls()[-1] == [*start, "tool/train.py", *more, config, "a b", "[0, 1]", "--x"]
    assert not (project / "exp").exists() and not any("tool/test.py" in call for call in calls())


def test_directory_of_a_dataset_tells_the_forms_apart(project, tmp_path, calls):
    assert sh(project, "train.sh", "toy", "pspnet18", "a b", "--x", first_in_path=tmp_path / "bin").returncode == 0
    words = ["--config", "config/toy/toy_pspnet18.yaml", "a b", "--x"]
    assert calls() == [["tool/train.py", *words], ["tool/test.py", *words]]


def test_train_dist_takes_machines_from_the_environment(project, tmp_path, calls, monkeypatch):
    for name, value in {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "host0", "PORT": 1234}.items():
        monkeypatch.setenv(name, str(value))
    assert sh(project, "train_dist.sh", "toy_pspnet18", 8, first_in_path=tmp_path / "bin").returncode == 0
    where = "--nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr host0 --master-port 1234".split()
    assert calls()[-1][2:] == [*where, "tool/train.py", "--launcher", "pytorch", "toy_pspnet18"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP], ids=str)
def test_a_signal_to_train_dist_reaches_the_processes_which_save(project, monkeypatch, number):
    monkeypatch.setenv("PORT", str(free_port()))
    command = ["sh", project / "tool/train_dist.sh", "toy_pspnet18", 2, *TINY, "epochs", 99, "evaluate", False, "print_freq", 1]
    command += ["--work-dir", project / "exp/dist", "--dist-backend", "gloo", "save_freq", 99]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*map(str, command)], env=environment, **output) as script:
        lines = []
        for line in script.stdout:
            lines.append(line)
            if "Epoch: [1/99][2/" in line:
                script.send_signal(number)
        assert script.wait(60) == 75, "".join(lines)
    assert f"Stopped by {number.name}; everything is saved" in "".join(lines)
    assert len(list((project / "exp/dist").glob("train_epoch_*.pth"))) == 1


def test_a_closed_input_is_no_obstacle(project, tmp_path, calls):
    command = ["sh", "-c", 'exec sh "$0" toy pspnet18 <&-', project / "tool/train.sh"]
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    assert subprocess.run(command, env=environment).returncode == 0
    assert [call[0] for call in calls()] == ["tool/train.py", "tool/test.py"]


def test_cdpath_leads_no_script_elsewhere(project, tmp_path, calls, monkeypatch):
    (tmp_path / "other/tool").mkdir(parents=True)
    monkeypatch.setenv("CDPATH", str(tmp_path / "other"))
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "tool/test.sh", "toy", "pspnet18"], cwd=project, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "") and calls()[0][0] == "tool/test.py", done.stderr


def test_what_is_missing_is_named(project, tmp_path):
    for name in ("python", "python3"):
        executable(tmp_path / "bin" / name, "#!/bin/sh\necho 'missing: torch>=9 (found 2.8)' >&2\nexit 1\n")
    done = sh(project, "test.sh", "toy", "pspnet18", first_in_path=tmp_path / "bin")
    assert done.returncode == 1 and "python3: missing: torch>=9 (found 2.8)\n" in done.stderr
    assert "run 'sh tool/quickstart.sh' once" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_script_reaches_the_training_and_its_status_the_caller(project, tmp_path, number):
    training = (
        "import signal, sys; signal.signal(int(sys.argv.pop()), lambda *_: sys.exit(75)); print('ready', flush=True); "
        "signal.pause()"
    )
    executable(
        tmp_path / "bin/python",
        f'#!/bin/sh\n[ "$1" = tool/train.py ] || exit 0\nexec "{sys.executable}" -c "{training}" "$@"\n',
    )
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    command = ["sh", project / "tool/train.sh", "toy", "pspnet18", str(int(number))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout.readline() == "ready\n"
        script.send_signal(number)
        assert script.wait(10) == 75


def test_the_copy_of_an_earlier_runs_code_stays(project, tmp_path, calls):
    def train():
        assert sh(project, "train.sh", "toy", "pspnet18", first_in_path=tmp_path / "bin").returncode == 0

    train()
    train()
    exp, code = project / "exp/toy/pspnet18", "model/pspnet.py"
    assert {path.name for path in exp.iterdir()} == {"snapshot"}
    (project / code).rename(project / "model/mine.py")
    train()
    assert {path.name for path in exp.iterdir()} == {"snapshot", "snapshot-1"}
    assert (exp / "snapshot-1" / code).is_file() and not (exp / "snapshot" / code).exists()


@pytest.mark.parametrize("words", [["resume", "a.pth"], ["TRAIN.resume", "null"], ["--resume-from=a.pth"]])
def test_a_job_that_queues_up_again_takes_no_resume(project, words, monkeypatch):
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(project))
    done = sh(project, "slurm.sh", "toy", "pspnet18", *words)
    assert done.returncode == 2 and "error: resume: a job resumes from" in done.stderr
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(project / "config"))
    done = sh(project, "slurm.sh", "toy", "pspnet18")
    assert done.returncode == 1 and f"error: {project}/config is not the project's root: call sbatch there" in done.stderr


@pytest.mark.parametrize("status, requeued", [(75, True), (128 + signal.SIGUSR1, True), (1, False), (0, False)])
def test_a_job_that_a_signal_stopped_queues_up_again(project, tmp_path, monkeypatch, status, requeued):
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(project))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    executable(tmp_path / "bin/python", "#!/bin/sh\n")
    executable(tmp_path / "bin/srun", f'#!/bin/sh\necho "$SRUN_CPUS_PER_TASK $*"\nexit {status}\n')
    executable(tmp_path / "bin/scontrol", '#!/bin/sh\necho "$@"\n')
    done = sh(project, "slurm.sh", "toy", "pspnet18", "a b", first_in_path=tmp_path / "bin")
    started = "8 --wait=60 python tool/train.py --config config/toy/toy_pspnet18.yaml resume auto a b\n"
    assert (done.returncode, done.stdout) == (status, started + "requeue 77\n" * requeued)


@pytest.mark.parametrize("words", [[], ["toy"], ["toy", "epochs"], ["toy", "0"], ["toy", "00"], ["toy", ""]])
def test_train_dist_without_a_number_of_gpus_shows_the_usage(project, words):
    done = sh(project, "train_dist.sh", *words)
    assert done.returncode == 2 and "usage: sh tool/train_dist.sh CONFIG NUM_GPUS" in done.stderr


def test_train_without_a_name_shows_both_forms(project):
    for words in ([], [""]):
        done = sh(project, "train.sh", *words)
        assert done.returncode == 2 and "DATASET EXP" in done.stderr and "sh tool/train.sh CONFIG" in done.stderr


def test_config_that_does_not_exist_is_named(project):
    done = sh(project, "train.sh", "toy", "pspnet19")
    assert done.returncode == 1
    assert "config/toy/toy_pspnet19.yaml: no such config file (did you mean toy_pspnet18.yaml" in done.stderr
    assert not (project / "exp").exists()


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
def test_too_few_arguments_show_the_usage(project, script):
    done = sh(project, script, "toy")
    assert done.returncode == 2 and f"usage: sh tool/{script} DATASET EXP" in done.stderr


def test_python_without_the_packages_is_refused_with_the_remedy(project, tmp_path):
    for name in ("python", "python3"):
        executable(tmp_path / "bin" / name, "#!/bin/sh\nexit 1\n")
    done = sh(project, "test.sh", "toy", "pspnet18", first_in_path=tmp_path / "bin")
    assert done.returncode == 1 and "sh tool/quickstart.sh" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_started_without_the_packages_says_so_in_one_line(project, program):
    command = [sys.executable, "-S", project / "tool" / program]  # -S: without what is installed
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 1 and re.fullmatch(
        f"error: {re.escape(sys.executable)} has no package (torch|numpy|cv2|yaml); run `sh tool/quickstart.sh` once, "
        "or `pip install -r requirements.txt`\n",
        first.stderr,
    )
    executable(project / ".venv/bin/activate", "")
    second = subprocess.run(command, capture_output=True, text=True)
    activate = f". '{project}/.venv/bin/activate'"
    assert second.returncode == 1 and f"; `{activate}` makes `python` the one that was" in second.stderr


def test_one_line_is_for_missing_packages_alone():
    names = {"opencv-python": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
    wanted = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert {names.get(name, name) for name in wanted} == start.PACKAGES
    code = "import util.start; import torch_of_another_name"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_usage_begins_as_the_command_does(program, capsys):
    main = importlib.import_module(f"tool.{program.removesuffix('.py')}").main
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python tool/{program} ")


def test_threads_of_a_program_started_by_hand_wait_without_spinning_unless_the_user_wants_it():
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    done = run([sys.executable, "tool/train.py", "--help"], env=variables | {"OMP_DISPLAY_ENV": "true"})
    assert re.search("OMP_WAIT_POLICY ?= ?'PASSIVE'", done.stderr)  # as OpenMP has understood it
    command = [sys.executable, "-c", "import util.start, os; print(os.environ['OMP_WAIT_POLICY'])"]
    assert run(command, env=variables | {"OMP_WAIT_POLICY": "active"}).stdout == "active\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
@pytest.mark.parametrize("variables, kept", [({}, True), ({"LD_PRELOAD": "libm.so.6"}, True), ({"MALLOC_PERTURB_": "0"}, False),
                                             ({"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, False)])  # fmt: skip
def test_memory_that_is_freed_is_used_again_unless_the_user_has_set_the_allocator(variables, kept):
    code = "import resource, util.start; pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; b'a' * 2**26; " \
           "before = pages(); b'a' * 2**26; print(pages() - before)"  # fmt: skip
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=others | variables)
    assert (int(done.stdout) < 16) == kept  # pages cleared for the second block: none, or 32 of 2 MiB or 16384 of 4 KiB


def test_quick_start_ends_with_lines_that_work(project, tmp_path):
    # A Python that has everything and does nothing, and one that has nothing beside a .venv that has.
    executable(tmp_path / "bin/python", "#!/bin/sh\n")
    lines = sh(project, "quickstart.sh", first_in_path=tmp_path / "bin").stdout.partition("These work next:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == ["cd", "python", "python", "tensorboard"]
    for name in ("python", "python3"):
        executable(tmp_path / "bare" / name, "#!/bin/sh\nexit 1\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    (project / ".venv/bin/python").unlink()
    executable(project / ".venv/bin/python", "#!/bin/sh\n")
    lines = sh(project, "quickstart.sh", first_in_path=tmp_path / "bare").stdout.partition("These work next:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == ["cd", ".", "python", "python", "tensorboard"]
    assert lines[2].endswith("tool/demo.py --config config/toy/toy_pspnet18.yaml --image dataset/toy/image/val --out seen")
    found = subprocess.run(
        ["sh", "-c", "\n".join([*lines[:2], "command -v python"])], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.stdout == f"{project}/.venv/bin/python\n"


def test_check_runs_all_tests_in_several_processes_and_what_it_is_told_as_it_is_told(project, tmp_path, calls):
    assert sh(project, "check.sh", first_in_path=tmp_path / "bin").returncode == 0
    several = "-n logical --maxprocesses 4 --dist worksteal".split()
    assert calls() == [["-m", "ruff", "check", "."], ["-m", "pytest", *several]]
    assert sh(project, "check.sh", "-k", "a b", first_in_path=tmp_path / "bin").returncode == 0
    assert calls()[-1] == ["-m", "pytest", "-k", "a b"]


def test_check_passes_a_failure_on(project, tmp_path):
    python = f'#!/bin/sh\ncase "$*" in *ruff*) exit 3;; esac\nexec "{sys.executable}" "$@"\n'
    executable(tmp_path / "bin/python", python)
    assert sh(project, "check.sh", first_in_path=tmp_path / "bin").returncode == 3


def test_missing_libgl_brings_the_headless_build_of_the_same_version(project, tmp_path):
    # A Python that only notes what it is asked to do; `import cv2` fails in it until the headless build is installed.
    pretend = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
    *requirements.py*|*"import cv2"*) grep -q 'install.*opencv-python-headless==4.9.0' "{log}" ;;
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip show"*) echo "Version: 4.9.0" ;;
    *ruff*) exit 7 ;;
esac
""".replace("{log}", str(tmp_path / "log"))
    for name in ("python", "python3"):
        executable(tmp_path / "bin" / name, pretend)
    done = sh(project, "check.sh", first_in_path=tmp_path / "bin")
    calls = (tmp_path / "log").read_text().splitlines()
    assert done.returncode == 7, done.stderr  # it came as far as ruff
    install = [call for call in calls if "pip" in call and "show" not in call]
    assert "-r requirements-dev.txt" in install[0]
    assert "uninstall" in install[1] and install[1].endswith("opencv-python")
    assert install[2].endswith("opencv-python-headless==4.9.0")


def test_matrix_pins_the_lowest_versions_for_the_oldest_python_and_reports_a_failure(project, tmp_path, monkeypatch):
    # A Python that notes its words and the constraints that it installs with; its tests fail under 3.11.
    pretend = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && sed "s/NUMBER/${0##*python}/g" "$0" > "$3/bin/python" && chmod +x "$3/bin/python" ;;
    *"pip install"*) for last; do :; done; cp "$last" "{folder}/NUMBER.txt" ;;
    *pytest*) echo "NUMBER $*${PYTHONS-}" >> "{folder}/log"; test NUMBER != 3.11 ;;
esac
""".replace("{folder}", str(tmp_path))
    for version in ("3.10", "3.11", "3.12", "3.13"):
        executable(tmp_path / f"bin/python{version}", pretend)
    monkeypatch.setenv("PYTHONS", "3.10 3.11 3.12 3.13")  # what is tested does not get it: it runs this script too
    assert sh(project, "matrix.sh", "-k", "a b", first_in_path=tmp_path / "bin").returncode == 1
    ran = [f"{version} -m pytest -k a b" for version in ("3.10", "3.11", "3.12", "3.13")]
    assert (tmp_path / "log").read_text().splitlines() == ran
    pinned = dict(line.split("==") for line in (tmp_path / "3.10.txt").read_text().splitlines())
    lines = [
        line for name in ("requirements.txt", "requirements-dev.txt") for line in (project / name).read_text().splitlines()
    ]
    lowest = dict(line.split("#")[0].strip().split(">=") for line in lines if ">=" in line)
    assert pinned == {**lowest, "opencv-python-headless": lowest["opencv-python"]} and {"torch", "pytest"} < lowest.keys()
    assert all((tmp_path / f"{version}.txt").read_text() == "" for version in ("3.11", "3.12", "3.13"))


def test_requirements_name_what_is_missing(tmp_path):
    (tmp_path / "r.txt").write_text("numpy>=1.0\n# a comment\nno-such-package>=2\nnumpy>=999\n")
    command = [sys.executable, ROOT / "tool/requirements.py", tmp_path / "r.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no-such-package>=2 (found none)" in done.stderr and "numpy>=999 (found" in done.stderr
    assert "numpy>=1.0 (" not in done.stderr


def test_requirements_of_the_project_are_satisfied_by_this_python():
    command = [sys.executable, ROOT / "tool/requirements.py", ROOT / "requirements-dev.txt"]
    assert subprocess.run(command, capture_output=True).returncode == 0
