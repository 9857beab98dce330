"""The version is the same everywhere, and the workflows call targets that exist."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import yaml

import mfm_jax

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def check_version():
    spec = spec_from_file_location("check_version", ROOT / "scripts" / "check_version.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_names_the_version_of_the_package():
    check = check_version()
    assert {check.named(file) for file in check.PLACES} == {mfm_jax.__version__}
    assert len(check.problems("9.9.9")) == len(check.PLACES)


def test_the_citation_has_what_the_format_needs():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"


def test_workflows_run_targets_and_scripts_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+)(?=[-%]*:)", makefile, re.MULTILINE))
    assert len(WORKFLOWS) == 2
    for workflow in WORKFLOWS:
        jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
        commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        for command in commands:
            program, what = command.split()[:2]
            if program == "make":
                assert what.split("-")[0] in targets, command
            else:
                assert (ROOT / what).is_file(), command


def test_the_matrix_has_the_pythons_that_are_supported():
    (pythons,) = re.findall(r"^PYTHONS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    newest = yaml.safe_load(WORKFLOWS[-1].read_text())["jobs"]["newest"]
    assert newest["strategy"]["matrix"]["python"] == pythons.split()
