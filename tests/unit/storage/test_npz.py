"""Files of arrays: written under the name that was given, read with one line for what is damaged or of another kind."""

import io
from pathlib import Path

import numpy as np
import pytest

from cohortgmm.errors import CohortgmmError, ConfigError, DataError, MissingFileError, OutputError
from cohortgmm.storage.npz import read_arrays, write_arrays

ARRAYS = {"a": np.arange(3.0), "b": np.eye(2)}


@pytest.mark.parametrize("name", ["m", "m.npz", "m.model", "a b.npy", "ü é", ".hidden", "{x}"])
@pytest.mark.parametrize("kind", [str, Path])
def test_the_named_file_is_written_whatever_its_suffix(tmp_path, name, kind):
    path = kind(tmp_path / name)
    write_arrays(path, ARRAYS)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    for key, array in read_arrays(path, ARRAYS).items():
        assert np.array_equal(array, ARRAYS[key])


def test_open_files_are_written_and_read_where_they_are(tmp_path):
    memory = io.BytesIO()
    write_arrays(memory, ARRAYS)
    memory.seek(0)
    assert set(read_arrays(memory, ["a"])) == {"a"}
    with (tmp_path / "x").open("wb") as file:
        write_arrays(file, ARRAYS)
        assert not file.closed
    with (tmp_path / "x").open("rb") as file:
        assert np.array_equal(read_arrays(file, ["b"])["b"], np.eye(2))
        assert not file.closed


def test_a_file_that_is_open_as_text_is_refused(tmp_path):
    with (tmp_path / "x").open("w") as file, pytest.raises(ConfigError, match="open it in binary mode, 'wb'"):
        write_arrays(file, ARRAYS)
    with (tmp_path / "x").open() as file, pytest.raises(ConfigError, match="open it in binary mode, 'rb'"):
        read_arrays(file, ["a"])


@pytest.mark.parametrize("file", [None, 3, {}, b"x", ["x"], 1.5])
def test_what_is_neither_path_nor_file_is_refused(file):
    with pytest.raises(ConfigError, match=r"^a file to read must be a path or an open binary file, got"):
        read_arrays(file, ["a"])
    with pytest.raises(ConfigError, match=r"^a file to write must be a path or an open binary file, got"):
        write_arrays(file, ARRAYS)


def test_paths_that_cannot_be_used_are_one_line(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere: no such file$"):
        read_arrays(tmp_path / "nowhere", ["a"])
    with pytest.raises(FileNotFoundError):  # the same error, for those who catch Python's own
        read_arrays(tmp_path / "nowhere", ["a"])
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_arrays(tmp_path, ["a"])
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays("a\0b", ["a"])
    for path in (tmp_path, tmp_path / "no" / "folder", "a\0b"):
        with pytest.raises(OutputError, match=r"^cannot write "):
            write_arrays(path, ARRAYS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_one_line_or_holds_arrays(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    whole, path = (tmp_path / "x.npz").read_bytes(), tmp_path / "damaged.npz"
    rng, messages = np.random.default_rng(0), []
    for i in range(300):
        part = bytearray(whole)
        if i % 2:
            part = part[: rng.integers(len(part))]
        for place in rng.integers(len(part), size=4 if len(part) else 0):
            part[place] = rng.integers(256)
        path.write_bytes(part)
        try:
            read_arrays(path, ARRAYS)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)


def test_objects_that_could_run_code_are_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([None, {}], dtype=object))
    with pytest.raises(CohortgmmError, match=r"x\.npz holds no mixture: not a readable \.npz file"):
        read_arrays(tmp_path / "x.npz", ["a"])
