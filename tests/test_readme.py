"""README and docs/ say what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from encoders.family import read_family
from encoders.reference import markdown_families, markdown_rerankers
from encoders.tasks import Role
from jobs import history, verify
from jobs.cli import parse
from jobs.command import arguments
from jobs.config import JobConfig
from jobs.reference import markdown_reference

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}


def test_the_configuration_reference_is_the_generated_one() -> None:
    marked = re.search(r"<!-- python -m jobs.reference -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert marked is not None
    assert marked[1].strip() == markdown_reference()


def test_the_table_of_models_is_the_generated_one() -> None:
    marked = re.search(r"<!-- python -m encoders.reference -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert marked is not None
    assert marked[1].strip() == markdown_families()


def test_the_table_of_rerankers_is_the_generated_one() -> None:
    marked = re.search(
        r"<!-- python -m encoders.reference --rerankers -->\n(.*?)\n<!-- end -->", MODELS, re.DOTALL
    )
    assert marked is not None
    assert marked[1].strip() == markdown_rerankers()


def test_the_protocol_that_is_written_out_is_valid() -> None:
    [written] = [
        tree["encoder"]["protocol"]
        for example in re.findall(r"```yaml\n(encoder:\n.*?)```", MODELS, re.DOTALL)
        if "protocol" in (tree := yaml.safe_load(example))["encoder"]
    ]
    assert read_family(written).prompts["clustering"][Role.DOCUMENT].prefix == "cluster: "


def test_the_example_configuration_is_valid() -> None:
    [example] = re.findall(r"```yaml\n# job.yaml\n(.*?)```", README, re.DOTALL)
    JobConfig.model_validate(yaml.safe_load(example))


def test_every_job_command_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"```yaml\n# job.yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "job.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    pages = "\n".join(page for path, page in PAGES.items() if path.name != "scheduling.md")
    commands = re.findall(r"python -m jobs\.embed ((?:[^\n]*\\\n)*[^\n`]*)", pages)
    assert len(commands) >= 4
    for command in commands:
        parse(shlex.split(command.replace("\\\n", " "), comments=True))


def test_every_command_of_history_and_verify_parses() -> None:
    pages = "\n".join(PAGES.values())
    for module in (history, verify):
        commands = re.findall(rf"\$ python -m {module.__name__} ([^\n#]*)", pages)
        assert commands
        for command in commands:
            with arguments(module.command, module.PROGRAM, shlex.split(command)) as context:
                assert context.params["output"], command


def test_what_is_imported_in_examples_is_there() -> None:
    blocks = [
        block for page in PAGES.values() for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ]
    imports = [
        line for block in blocks for line in block.splitlines() if re.match(r"from (jobs|encoders)\b", line)
    ]
    assert imports
    for line in imports:
        exec(line, {})


def test_every_file_of_the_tree_is_there_and_every_module_is_in_it() -> None:
    tree = README.partition("## What is where")[2]
    for package in ("encoders", "jobs"):
        modules = {
            path.name
            for path in (ROOT / package).glob("*.py")
            if path.name not in ("__init__.py", "errors.py")
        }
        assert modules == {name for name in re.findall(r"\w+\.py", tree) if (ROOT / package / name).is_file()}
    for name in re.findall(r"^(\S+)  ", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_every_link_leads_to_a_file_or_a_heading() -> None:
    for path, page in PAGES.items():
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page):
            name, _, heading = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), (path.name, link)
            if heading:
                headings = re.findall(r"^#+ (.*)", PAGES[target], re.MULTILINE)
                assert heading in {
                    re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings
                }, link
