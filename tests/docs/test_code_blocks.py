"""Every code block of README, CONTRIBUTING and docs does what its page says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import PAGES, REPOSITORY, Block, blocks_of, folder_of
from projects import copy_workflow, make_cohort

from cohortgmm.config import read_config

pytestmark = pytest.mark.pipeline

MARKS = ("", "not run", "file", "ggml", "release")
LANGUAGES = ("python", "sh", "yaml", "r")
NAMES = {str(page.relative_to(REPOSITORY)): page for page in PAGES}
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in NAMES.items()}

#: Seconds that a block may take, on a machine that is busy with other things.
TIMEOUT = 1200

#: The cohort that pages of folder ``finished`` speak of.
CONFIG = {
    "input": "data/cohort.h5ad",
    "patient_col": "patient",
    "label_col": "condition",
    "celltype_col": "cell_type",
    "preprocess": {"enabled": False},
    "gmm": {"k_comps": [1, 2]},
    "qc": {"umap": False, "patient_figures": False},
}


def shell(code: str, folder: Path) -> str:
    """Run commands that must succeed; what they print."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "PYTHONPATH": str(REPOSITORY / "src"),
        "NO_COLOR": "1",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-4000:]}"
    return done.stdout


def new_clone(folder: Path) -> Path:
    """What a user has after cloning the repository."""
    copy_workflow(folder)
    shutil.copytree(REPOSITORY / "config", folder / "config")
    shutil.copytree(REPOSITORY / "resources" / "demo", folder / "resources" / "demo")
    return folder


@pytest.fixture(scope="session")
def finished_clone(tmp_path_factory) -> Path:
    """A clone in which a small cohort of the patients P1, P2 and P3 has been run."""
    folder = new_clone(tmp_path_factory.mktemp("finished") / "clone")
    (folder / "data").mkdir()
    make_cohort().write_h5ad(folder / "data" / "cohort.h5ad")
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    shell("snakemake --cores 2", folder)
    return folder


@pytest.fixture
def folder(request, tmp_path) -> Path:
    """The folder that a page asks for."""
    kind = folder_of(TEXTS[request.node.callspec.params["name"]])
    if kind == "clone":
        return new_clone(tmp_path / "cohortgmm")
    if kind == "finished":
        finished = request.getfixturevalue("finished_clone")
        shutil.copytree(finished, tmp_path / "cohortgmm")
        return tmp_path / "cohortgmm"
    assert kind == "empty"
    return tmp_path


def python(block: Block, name: str, namespace: dict) -> None:
    """Run Python; the traceback of an error names the line of the page."""
    exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)


def python_of_ggml(block: Block, folder: Path) -> None:
    """Run Python in the environment of ggml-ot."""
    interpreter = Path(os.environ.get("COHORTGMM_GGML_PYTHON") or REPOSITORY / ".venv-ggml" / "bin" / "python")
    if not interpreter.is_file():
        assert not os.environ.get("CI"), f"no {interpreter}: make ggml"
        return
    environment = os.environ | {"MPLBACKEND": "agg"}
    command = [interpreter, "-c", block.code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def check_yaml(text: str) -> None:
    """Keys of a configuration are valid in one."""
    keys = yaml.safe_load(text)
    read_config({"input": "cohort.h5ad", "patient_col": "patient", "preprocess": {"enabled": False}} | keys)


@pytest.mark.parametrize("name", [name for name in NAMES if any(b.mark != "release" for b in blocks_of(TEXTS[name]))])
def test_code_blocks_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict = {}
    for block in blocks_of(TEXTS[name]):
        if block.mark in ("not run", "release"):
            continue
        try:
            if block.mark == "file":
                path = folder / block.detail
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.code, encoding="utf-8")
            elif block.mark == "ggml":
                python_of_ggml(block, folder)
            elif block.language == "python":
                python(block, name, namespace)
            elif block.language == "sh":
                shell(block.code, folder)
            else:
                check_yaml(block.code)
        except Exception as error:
            raise AssertionError(f"{name}, line {block.line}: {error}") from error


@pytest.mark.release
@pytest.mark.parametrize("name", [name for name in NAMES if any(b.mark == "release" for b in blocks_of(TEXTS[name]))])
def test_code_blocks_of_a_release_run(name, folder):
    """R with Debian's packages r-base-core and r-bioc-rhdf5."""
    if not shutil.which("Rscript"):
        pytest.fail("no Rscript here: apt-get install r-base-core r-bioc-rhdf5")
    code = "\n".join(block.code for block in blocks_of(TEXTS[name]) if block.mark == "release")
    (folder / "page.R").write_text(code, encoding="utf-8")
    shell("Rscript page.R", folder)


@pytest.mark.parametrize("name", NAMES)
def test_every_code_block_is_run_or_says_why_not(name):
    for block in blocks_of(TEXTS[name]):
        where = f"{name}, line {block.line}"
        assert block.language in LANGUAGES or block.mark in ("file", "not run"), where
        assert block.mark in MARKS, where
        assert (block.mark in ("not run", "file")) == bool(block.detail), where
        assert block.language != "r" or block.mark == "release", where


def test_marks_and_hidden_code_are_read():
    text = """
<!-- run python
x = 1
-->
```python
y = x
```

<!-- not run: takes an hour -->
```sh
make
```

```text
no code
```
<!-- file: a.yaml -->
```yaml
a: 1
```
"""
    assert blocks_of(text) == [
        Block("python", "x = 1\n", 3),
        Block("python", "y = x\n", 6),
        Block("sh", "make\n", 11, "not run", "takes an hour"),
        Block("yaml", "a: 1\n", 19, "file", "a.yaml"),
    ]
