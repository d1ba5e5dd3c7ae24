"""Every command of the project: how it is used can be asked anywhere and changes nothing, and what it does not know it refuses."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = ["app.py", "docs/screenshot.py", "examples/make.py", "tests/benchmarks/run.py"]  # the others are modules
OPTIONAL = ["ray", "onnx", "onnxruntime", "playwright", "tensorboard", "tensorflow", "opensmile"]
# Runs commands in forks of a process that has imported all of them once, and in which nothing optional is installed.
PROGRAM = """
import importlib, json, os, runpy, sys, tempfile, traceback

names, optional = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(optional))
for name in names:
    importlib.import_module(name.removesuffix(".py").replace("/", "."))


def run(name, *arguments):
    sys.argv = [name, *arguments]
    try:
        if name.endswith(".py"):
            sys.path[0] = os.path.dirname(os.path.abspath(name))  # as Python does for a script
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as error:
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 1


for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as said:
        if (child := os.fork()) == 0:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            status = run(*json.loads(line))
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        print(json.dumps([status, said.read()]), flush=True)
"""


def commands() -> list[str]:
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(".") and '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8"):
            module = name.removesuffix("/__main__.py").removesuffix(".py").replace("/", ".")
            names.append(name if name in SCRIPTS else module)
    return names


def files_of_the_project() -> dict:
    kinds = ("*.md", "*.json", "*.png", "*.flac", "*.onnx", "*.mjs", "*.wasm")
    return {path: path.stat().st_mtime_ns for kind in kinds for path in ROOT.rglob(kind)}


@pytest.fixture(scope="module")
def run():
    """What runs a command, by its name and arguments, and gives its exit status and all it says."""
    command = [
        sys.executable,
        "-W",
        "ignore::RuntimeWarning",
        "-c",
        PROGRAM,
        json.dumps(commands()),
        json.dumps(OPTIONAL),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(*arguments) -> tuple[int, str]:
            print(json.dumps(list(map(str, arguments))), file=process.stdin, flush=True)
            return tuple(json.loads(process.stdout.readline()))

        yield ask
        process.stdin.close()


def test_every_command_is_found():
    assert {"ser_model", "ser_model.cluster", "train.report", "web.assets", "tests.fuzz", *SCRIPTS} <= set(commands())


@pytest.mark.parametrize("name", commands())
def test_says_how_it_is_used_and_refuses_what_it_does_not_know(run, name):
    before = files_of_the_project()
    status, said = run(name, "--help")
    assert status == 0 and said.startswith("usage: "), said
    status, said = run(name, "--no-such-option")
    assert status == 2 and said.startswith("usage: ") and "error: " in said, said
    assert files_of_the_project() == before


WRITERS = {
    "ser_model": ["examples"],
    "train.evaluate": ["--protocol", "random-split"],
    "train.export": [],
    "train.features": [],
}


def test_refuses_an_output_before_any_work(run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "full").mkdir()
    foreign = {}
    for ending in ("csv", "json", "parquet", "txt"):
        foreign[ending] = tmp_path / f"mine.{ending}"
        foreign[ending].write_text("my own\n")
    (tmp_path / "figure.png").write_bytes(b"\x89PNG")
    cases = [
        *((name, tmp_path / "out.xlsx", 2, "must end in .") for name in WRITERS),
        *((name, tmp_path / "clip.wav", 2, "must end in .") for name in WRITERS),
        *((name, tmp_path / "full", 1, "is a folder") for name in WRITERS if name != "train.export"),
        *(("ser_model", path, 1, "exists and is no result of this command") for path in foreign.values()),
        ("train.features", foreign["csv"], 1, "exists and is no result of this command"),
        ("train.features", foreign["parquet"], 1, "exists and is no result of this command"),
        ("train.evaluate", foreign["json"], 1, "exists and is no result of this command"),
        ("train.evaluate", tmp_path / "figure.json", 1, "figure.png exists and is no result of this command"),
        ("ser_model", tmp_path / "no/out.csv", 1, "Make the folder"),
        ("train.features", tmp_path / "no/out.csv", 1, "Make the folder"),
        ("train.evaluate", tmp_path / "no/out.json", 1, "Make the folder"),
        ("ser_model", tmp_path / "file/out.csv", 1, "Make the folder"),
        ("train.train", tmp_path / "file", 1, "cannot be a folder"),
        ("train.train", tmp_path, 1, "holds other files"),
        ("train.finetune", tmp_path, 1, "holds other files"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    options = {**WRITERS, "train.train": [], "train.finetune": ["--data", str(tmp_path)]}
    for name, output, status, says in cases:
        found, said = run(name, *options[name], "--output", output)
        assert found == status and says in said, (name, output, said)
        assert "Traceback" not in said and (status == 2 or said.count("\n") == 1), (name, output, said)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ser_model.cluster", ["examples", "--output", "out"]),
        ("train.export", ["--output", "out.onnx"]),
        ("web.assets", []),
    ],
)
def test_says_what_is_not_installed(run, name, arguments):
    before = files_of_the_project()
    status, said = run(name, *arguments)
    assert status == 1 and said.startswith("error: ") and said.count("\n") == 1, said
    assert "pip install -r requirements-" in said
    assert files_of_the_project() == before
