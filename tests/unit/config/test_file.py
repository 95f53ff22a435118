"""Files of the configuration that cannot be read are named in one line."""

import pytest

from cohortgmm.config.file import read_config_file
from cohortgmm.errors import ConfigError


@pytest.mark.parametrize("text", ["a: 1\n", "a: 1\r\n", "\ufeffa: 1\n", '{"a": 1}', "a: &x 1\n"])
def test_files_that_can_be_read(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode())
    assert read_config_file(path) == {"a": 1}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_files_without_keys(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert read_config_file(path) == {}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("input: ä\n".encode("latin-1"), "is no text in UTF-8"),
        ("input: a\n".encode("utf-16"), "is no text in UTF-8"),
        (b"input: a\x00\n", "is no YAML: "),
        (b"gmm:\n\tk_comps: 1\n", "is no YAML: .* line 2"),
        (b"a: 1\n---\nb: 1\n", "is no YAML: expected a single document"),
        (b"a: 2020-13-45\n", "is no YAML: month must be"),
        (b"[" * 5000, "is no YAML: "),
        (b"- a\n", "must hold keys with values, got a list"),
        (b"a\n", "must hold keys with values, got a str"),
        (b"gmm: &a\n  noise: [*a]\n", "has an alias"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, problem):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_config_file(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no such configuration: .*none; name another with --configfile"):
        read_config_file(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_config_file(tmp_path)
