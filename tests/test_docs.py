"""README and docs: their commands and programs run as they stand, their options exist, their links lead somewhere."""

import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import app
from ser_model.__main__ import main as ser_model_main
from ser_model.pretrained import load_pipeline
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)
SERVER = "http://127.0.0.1:7860"
# Names that a reader sees to stand for something of their own.
OWN = re.compile("USER/|runs/|clip\\.|recordings")
MODULE = re.compile(r"python -m ((?:ser_model|train|web|tests)[\w.]*)")


def blocks(kind: str) -> list[tuple[str, str]]:
    return [
        (page.name, text) for page in PAGES for k, text in BLOCK.findall(page.read_text(encoding="utf-8")) if k == kind
    ]


def commands() -> list[tuple[str, list[str]]]:
    """Each `python -m` of one of our modules, with its arguments."""
    lines = [line for _, text in blocks("bash") for line in text.splitlines()]
    lines += [line for page in PAGES for line in re.findall(r"`(python -m [^`]+)`", page.read_text(encoding="utf-8"))]
    found = [(MODULE.search(line), line) for line in lines]
    return [(match[1], shlex.split(line[match.end() :], comments=True)) for match, line in found if match]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Holds what the snippets read, and may be written into."""
    for name in ("examples", "ser_model"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def url():
    demo = app.build_demo(load_pipeline())
    _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
    yield url.rstrip("/")
    demo.close()


def shell(command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings], target


def test_every_page_is_linked_from_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"(docs/{page.name})" not in text] == []


@pytest.mark.timeout(600)
def test_shell_commands_run(folder, capsys):
    """README's in a shell; the others in this process, which takes less time."""
    lines = [(page, line.split("#")[0].strip()) for page, text in blocks("bash") for line in text.splitlines()]
    lines = {line: page for page, line in reversed(lines) if line.startswith("python -m ser_model ")}
    runnable = {line: page for line, page in lines.items() if not OWN.search(line)}
    assert len(runnable) >= 4
    for line, page in runnable.items():
        if page == "README.md":
            out = shell(line)
        else:
            assert ser_model_main(shlex.split(line)[3:]) == 0, line
            out = capsys.readouterr().out
        assert "--output" in line or "Predicted Emotion" in out or '"windows"' in out, line
    assert (folder / "emotions.csv").read_text().count("\n") >= 7


def test_python_programs_run(folder, capsys, url):
    runnable = [(page, text) for page, text in blocks("python") if "USER/" not in text]
    assert {page for page, _ in runnable} >= {"README.md", "use.md", "api.md"}
    for page, text in runnable:
        exec(compile(text.replace(SERVER, url), page, "exec"), {})
        assert capsys.readouterr().out, page


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl is installed")
def test_http_calls_run(folder, url):
    (text,) = (text for page, text in blocks("bash") if page == "api.md")
    assert '"scores"' in shell(text.replace(SERVER, url))


def test_options_exist(monkeypatch):
    """Also of the commands that are too long to run here."""
    known = {}
    for module, words in commands():
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        if not options or not (ROOT / f"{module.replace('.', '/')}.py").exists() and module != "ser_model":
            assert not options or module in known, f"{module} does not exist"
            continue
        if module not in known:
            name = "ser_model.__main__" if module == "ser_model" else module
            try:
                main = importlib.import_module(name).main
            except ImportError:  # Ray is not installed everywhere
                assert module == "ser_model.cluster"
                continue
            with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
                monkeypatch.setattr(sys, "argv", [module, "--help"])
                main()
            known[module] = set(re.findall(r"--[a-z][\w-]*", shown.getvalue()))
        assert options <= known[module], f"{module} has no {options - known[module]}"
