import pytest

from util.common import Mistake, ahead, did_you_mean, first_few, text_table, write_aside


def test_a_file_appears_whole_with_its_folders_or_not_at_all(tmp_path):
    path = tmp_path / "new/file.txt"
    with write_aside(path, sync=True) as aside:
        aside.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(KeyboardInterrupt), write_aside(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("name", ["é" * 125 + ".png", "x" * 255, "写" * 85])
def test_a_name_may_be_as_long_as_the_file_system_takes(name, tmp_path):
    with write_aside(tmp_path / name) as aside:
        aside.write_text("one")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("a")
    with write_aside(tmp_path / "b") as aside:
        aside.symlink_to("c")
    assert (tmp_path / "b").readlink().name == "c" and (tmp_path / "a").read_text() == "a"


def test_a_disk_that_does_not_take_the_file_is_a_mistake_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Mistake, match=r"file/below\.txt: could not be written \(.*File exists: '.*/file'\)"), \
            write_aside(tmp_path / "file/below.txt") as aside:  # fmt: skip
        aside.write_text("x")


def test_reading_ahead_keeps_order_stays_bounded_and_passes_errors_on():
    started = []
    results = ahead(lambda i: started.append(i) or 10 // (7 - i), range(20), threads=2, depth=3)
    assert next(results) == 1 and len(started) <= 4
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert max(started) < 12


def test_words_for_messages():
    assert did_you_mean("Base_1r", ["base_lr", "power"]) == " (did you mean base_lr?)"
    assert did_you_mean("zzz", ["base_lr"]) == ""
    assert first_few([1, 2, 3]) == "1, 2, 3" and first_few([1, 2, 3], 2) == "1, 2, and 1 more"
    assert text_table([["id", "name", "x"], ["1", "a", "10"]]) == "id  name   x\n 1  a     10"
