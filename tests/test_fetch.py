"""Weights from elsewhere: fetched once, checked, kept; one clear error for everything that can go wrong on the way."""

import errno
import hashlib
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from golden_rules import fill_
from processes import CONFIG, finish, free_port, said, small_training, start

from model.pspnet import PSPNet
from tool import test, train
from util import distributed, fetch, inference
from util.checkpoint import load_checkpoint, save_checkpoint
from util.command import parse_test
from util.common import Mistake
from util.config import ROOT, changed_keys, dump_config, load_config
from util.fetch import local_file, parse_url

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HEX = "0123456789abcdef" * 4


@pytest.fixture
def server(monkeypatch):
    """A server of this machine: `files` {path: bytes}, `asked` the paths in order, `url` its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            content = self.server.files.get(self.path.partition("?")[0])
            if isinstance(content, str):  # where else to look
                self.send_response(302)
                self.send_header("Location", content)
                self.end_headers()
                return
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"") + self.server.cut))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.cut = {"/w/net.pth": CONTENT}, [], 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refusal(function, *args, **more):
    with pytest.raises(Mistake) as caught:
        function(*args, **more)
    return str(caught.value)


# ---- fetched once, checked, kept ----


def test_a_file_is_fetched_once_and_then_used_without_network(server, tmp_path):
    value, lines = f"{server.url}/w/net.pth#sha256={SHA256.upper()}", []
    path = local_file(value, tmp_path / "new", lines.append)
    assert path.read_bytes() == CONTENT and path == tmp_path / "new" / f"net-{SHA256[:16]}.pth"
    assert lines == [f"Fetching {server.url}/w/net.pth into {path}"]
    server.shutdown()
    assert local_file(value, tmp_path / "new", lines.append) == path and len(lines) == 1
    assert server.asked == ["/w/net.pth"] and list((tmp_path / "new").iterdir()) == [path]


def test_a_damaged_copy_is_fetched_again(server, tmp_path):
    value = f"{server.url}/w/net.pth#sha256={SHA256}"
    path = local_file(value, tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert local_file(value, tmp_path) == path and path.read_bytes() == CONTENT and len(server.asked) == 2


def test_another_checksum_names_both_and_leaves_nothing(server, tmp_path):
    value = f"{server.url}/w/net.pth#sha256={HEX}"
    assert refusal(local_file, value, tmp_path) == (
        f"{value}: the file there has another checksum, sha256={SHA256}; it was not kept"
    )
    assert not list(tmp_path.iterdir())


def test_a_model_of_the_hub_tells_its_checksum_which_then_fits_the_copy(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "HUB", server.url)
    server.files["/me/psp-net/resolve/main/sub/a.safetensors"] = CONTENT
    value, lines = "hf://me/psp-net/sub/a.safetensors", []
    path = local_file(value, tmp_path, lines.append)
    assert path.name.startswith("a-") and path.suffix == ".safetensors" and path.read_bytes() == CONTENT
    assert lines[1] == f"{value}: to have this very file checked from now on, write {value}#sha256={SHA256}"
    assert local_file(value, tmp_path, lines.append) == path and lines[2] == lines[1]
    assert local_file(f"{value}#sha256={SHA256}", tmp_path) == path and len(server.asked) == 1
    server.files["/me/psp-net/resolve/main/sub/a.safetensors"] = b"newer"
    newer = local_file(f"{value}#sha256={hashlib.sha256(b'newer').hexdigest()}", tmp_path)
    assert newer.read_bytes() == b"newer" and path.read_bytes() == CONTENT
    assert "has another checksum" in refusal(local_file, f"{value}#sha256={HEX}", tmp_path)


def test_two_addresses_never_share_a_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "HUB", server.url)
    server.files |= {f"/{who}/resolve/main/a.pth": who.encode() for who in ("a/a", "b/a", "a/b")}
    paths = {who: local_file(f"hf://{who}/a.pth", tmp_path) for who in ("a/a", "b/a", "a/b")}
    assert len(set(paths.values())) == 3 and all(path.read_text() == who for who, path in paths.items())


def test_whatever_the_address_the_file_is_in_the_folder(server, tmp_path):
    names = ["..", "%2e%2e%2fa", "a.pth?b=/../c", "..;a=b", ".pth", "x" * 300 + "." + "y" * 300, ""]
    for name in names:
        server.files[f"/w/{name}".partition("?")[0]] = CONTENT
        path = local_file(f"{server.url}/w/{name}#sha256={SHA256}", tmp_path / "in")
        assert path.parent == tmp_path / "in" and path.read_bytes() == CONTENT, name
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_path_stays_what_it_is(tmp_path):
    assert local_file(str(tmp_path / "a#sha256=b.pth"), None) == tmp_path / "a#sha256=b.pth"


# ---- what can go wrong ----


def test_without_network_the_error_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    value = f"http://127.0.0.1:{free_port()}/net.pth#sha256={SHA256}"
    text = refusal(local_file, value, tmp_path / "in", say=lambda line: None)
    place = tmp_path / "in" / f"net-{SHA256[:16]}.pth"
    assert text.startswith(f"{value}: could not be fetched ([Errno {errno.ECONNREFUSED}]") and f"put it at {place}" in text
    assert not list((tmp_path / "in").iterdir())
    place.write_bytes(CONTENT)
    assert local_file(value, tmp_path / "in") == place


def test_a_server_that_keeps_silent_does_not_hold_the_run_up(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        value = f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth#sha256={SHA256}"
        assert "could not be fetched (timed out)" in refusal(local_file, value, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_a_cut_one_and_an_impossible_port_leave_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "HUB", server.url)
    gone = f"{server.url}/gone.pth#sha256={SHA256}"
    assert f"{gone}: could not be fetched (HTTP Error 404: Not Found)" in refusal(local_file, gone, tmp_path)
    server.files["/me/net/resolve/main/a.pth"], server.cut = CONTENT, 5
    server.RequestHandlerClass.protocol_version = "HTTP/1.0"
    text = refusal(local_file, "hf://me/net/a.pth", tmp_path)
    assert text.startswith("hf://me/net/a.pth: could not be fetched (") and "5" in text
    assert "could not be fetched" in refusal(local_file, f"http://localhost:99999/a#sha256={SHA256}", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["http://127.0.0.1:1/x", "ftp://h/x", "file:///etc/passwd", "//127.0.0.1/x", "/w/net.pth"])
def test_it_follows_redirections_to_https_alone(server, tmp_path, to):
    server.files["/moved.pth"] = to
    text = refusal(local_file, f"{server.url}/moved.pth#sha256={SHA256}", tmp_path)
    assert "could not be fetched (" in text and ("which is not https" in text or to in text)  # of file: urllib's own words
    assert server.asked == ["/moved.pth"] and not list(tmp_path.iterdir())


def test_a_redirection_to_https_is_followed(server, tmp_path):
    server.files["/moved.pth"] = f"https://127.0.0.1:{free_port()}/x"
    text = refusal(local_file, f"{server.url}/moved.pth#sha256={SHA256}", tmp_path)
    assert f"[Errno {errno.ECONNREFUSED}]" in text  # it asked there


def test_a_full_disk_is_told_from_a_broken_network(server, tmp_path):
    (tmp_path / "in").touch()
    text = refusal(local_file, f"{server.url}/w/net.pth#sha256={SHA256}", tmp_path / "in")
    assert "could not be written" in text and "could not be fetched" not in text


# ---- addresses in a config ----


@pytest.mark.parametrize("value", [
    "https://h/a.pth", "https://h/a.pth#sha256=12", f"https://h/a.pth#md5={HEX}", f"https://h/a.pth#sha256={HEX}0",
    f"http://h/a.pth#sha256={HEX}", f"http://localhost.evil.org/a#sha256={HEX}", f"https://me:secret@h/a.pth#sha256={HEX}",
    f"https://h/a b.pth#sha256={HEX}", f"https://h/{{epochs}}.pth#sha256={HEX}", f"https://h/\u00e4.pth#sha256={HEX}",
    f"https://h#sha256={HEX}", f"https:///a.pth#sha256={HEX}", "hf://name/file.pth", "hf://o/n/../../x", "hf://o/n/a//b",
    "hf://o/n/{layers}.pth", "hf://o/n/f.pth#main", f"file:///etc/passwd#sha256={HEX}", f"ftp://h/a.pth#sha256={HEX}",
    f"HTTPS://h/a.pth#sha256={HEX}", "s3://bucket/a.pth", f"https://h/a.pth\n#sha256={HEX}",
])  # fmt: skip
def test_another_address_is_refused_with_what_is_expected(value):
    text = refusal(parse_url, value)
    assert text.startswith(f"{value}: ") and any(word in text for word in ("#sha256=HEX", "sha256= and 64 hexadecimal digits"))


def test_an_address_without_a_checksum_is_told_how_to_get_one():
    assert "write https://h/a.pth#sha256=HEX, with the 64 digits" in refusal(parse_url, "https://h/a.pth")


@pytest.fixture
def config(tmp_path):
    def write(weight, **test):
        keys = {"DATA": {"data_root": "d", "classes": 3}, "TRAIN": {"save_path": "exp", "weight": weight}, "TEST": test}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(keys))
        return tmp_path / "c.yaml"

    return write


@pytest.mark.parametrize("value", [f"https://h:8443/a/b.pth?x=1&y=2#sha256={HEX}", "hf://me/psp-net/model.safetensors"])
def test_a_config_keeps_an_address_as_it_is(value, config, tmp_path):
    path = config(value, model_path=value)
    cfg = load_config(path, ["initmodel", value], must_exist=["weight", "initmodel", "model_path"])
    assert cfg.weight == cfg.initmodel == cfg.model_path == value
    (tmp_path / "again.yaml").write_text(dump_config(cfg))
    again = load_config(tmp_path / "again.yaml")
    assert again.weight == value and not changed_keys(dump_config(cfg), again)
    _, overrides, _ = parse_test([str(path), "--work-dir", str(tmp_path / "work")], "A test.")
    assert load_config(path, overrides).model_path == value
    assert load_config(path, ["model_path", f"[{value}, a.pth]"]).model_path == (value, str(ROOT / "a.pth"))
    _, overrides, _ = parse_test([str(path), value], "A test.")
    assert overrides == ["model_path", value]


def test_a_config_refuses_what_no_file_can_be_fetched_for(config):
    text = refusal(load_config, config("https://h/a.pth"), ["resume", "hf://o/n/f.pth", "data_root", "s3://b/c"])
    assert "TRAIN.weight: https://h/a.pth: the checksum is missing" in text
    assert "TRAIN.resume: hf://o/n/f.pth: expected a path; addresses are for weight, initmodel, model_path" in text
    assert "DATA.data_root: s3://b/c: expected a path" in text
    text = refusal(load_config, config("hf://o/n/f.pth"), ["save_path", "{weight}/../x"])
    assert "TRAIN.save_path: {weight}/../x: {weight} is not the name of another key with one value" in text


# ---- the programs ----


def test_a_run_and_a_test_start_from_an_address(server, toy, tmp_path, monkeypatch, narrow, capsys):
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(test, "ROOT", tmp_path)
    monkeypatch.setattr(inference, "ROOT", tmp_path)
    save_checkpoint({"state_dict": fill_(PSPNet(18, classes=9)).state_dict()}, tmp_path / "net.pth")
    server.files["/net.pth"] = (tmp_path / "net.pth").read_bytes()
    value = f"{server.url}/net.pth#sha256={hashlib.sha256(server.files['/net.pth']).hexdigest()}"
    options = [*small_training(toy, max_iter=1, check_data=False), "evaluate", "False"]
    assert train.main(["--config", CONFIG, *options, "save_path", str(tmp_path / "a"), "weight", value]) == 0
    assert f"Weights {value}:\nformat: semseg" in capsys.readouterr().out
    content = load_checkpoint(tmp_path / "a/train_iter_1.pth")
    assert yaml.safe_load(content["config"])["TRAIN"]["weight"] == value
    assert train.main(["--config", CONFIG, *options, "save_path", str(tmp_path / "b"), "initmodel", value]) == 0
    options += ["model_path", value, "save_folder", str(tmp_path / "c"), "index_step", "1"]
    assert test.main(["--config", CONFIG, *options]) == 0
    assert f'"checkpoint": "{value}"' in (tmp_path / "c/result.json").read_text()
    options = ["save_folder", str(tmp_path / "d"), "index_step", "1", "test_list", str(toy / "list/val.txt")]
    trained = (tmp_path / "a/train_iter_1.pth").read_bytes()  # which carries its config
    server.files["/trained.pth"] = trained
    value = f"{server.url}/trained.pth#sha256={hashlib.sha256(trained).hexdigest()}"
    assert test.main([value, *options]) == 0 and inference.Predictor(value).cfg.path == value
    assert server.asked == ["/net.pth", "/trained.pth"] and len(list((tmp_path / "initmodel").iterdir())) == 2


def test_several_processes_ask_once_and_end_with_one_message(server, toy, tmp_path):
    value = f"{server.url}/w/net.pth#sha256={HEX}"
    log = tmp_path / "log"
    processes = start(small_training(toy), "save_path", tmp_path, "weight", value, world=2, log=log)
    assert finish(processes) == [1, 1]
    assert said(log).count("has another checksum") == 1 and "has another checksum" not in said(log, 1)
    assert server.asked == ["/w/net.pth"] and not list((ROOT / "initmodel").glob(f"*net-{HEX[:16]}*"))


@pytest.mark.parametrize("local_rank, order", [("0", ["function", "met"]), ("1", ["met", "function"])])
def test_the_first_process_of_a_machine_goes_ahead_of_the_others(local_rank, order, monkeypatch):
    events = []

    @contextmanager
    def same_errors():
        yield
        events.append("met")

    monkeypatch.setattr(distributed, "same_errors", same_errors)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert distributed.first_on_machine(lambda: events.append("function") or "path") == "path"
    assert [event for event in events if event == "function"] == ["function"] and events[:2] == order


@pytest.mark.parametrize("comes", [True, False])
def test_of_several_processes_of_a_machine_the_others_wait_for_the_first(server, tmp_path, monkeypatch, comes):
    monkeypatch.setattr(fetch, "WAIT", 600 if comes else 0.1)
    monkeypatch.setattr(fetch, "PAUSE", 0.02)
    monkeypatch.setenv("LOCAL_RANK", "1")
    value, told = f"{server.url}/w/net.pth#sha256={SHA256}", []
    place = tmp_path / f"net-{SHA256[:16]}.pth"
    if comes:
        threading.Timer(0.2, lambda: place.write_bytes(CONTENT)).start()
        assert local_file(value, tmp_path, told.append) == place
    else:
        assert f"which fetches it into {place}, has not done so" in refusal(local_file, value, tmp_path, told.append)
    assert not server.asked and not told


def test_processes_that_test_a_checkpoint_by_its_address_fetch_it_once(server, toy, tmp_path, narrow):
    options = small_training(toy, max_iter=1, check_data=False, evaluate=False, save_path=tmp_path / "a")
    assert train.main(["--config", CONFIG, *options]) == 0
    server.files["/net.pth"] = (tmp_path / "a/train_iter_1.pth").read_bytes()
    digits = hashlib.sha256(server.files["/net.pth"]).hexdigest()
    words = ["--config", f"{server.url}/net.pth#sha256={digits}", "save_folder", tmp_path / "out", "index_step", 2]
    log = tmp_path / "log"
    try:
        assert finish(start([], *words, log=log, world=2, program="tool.test")) == [0, 0], said(log)
    finally:
        kept = [path.unlink() for path in (ROOT / "initmodel").glob(f"net-{digits[:16]}.pth")]
    assert server.asked == ["/net.pth"] and len(kept) == 1 and (tmp_path / "out/result.json").is_file()
