"""How the command behaves whatever the library says: streams, exit codes, options, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt_tools.cli import main
from ckpt_tools.core.errors import CkptError, NothingFoundError, SourceError, UsageError
from ckpt_tools.core.progress import SILENT
from ckpt_tools.model.findings import Finding, Impact, Purpose, Severity, Verdict
from ckpt_tools.reports.latest import LatestReport, Passed
from ckpt_tools.reports.verify import CheckpointReport, VerifyReport
from tests.architecture.package import REPOSITORY

RUN = "fixtures/trainer5-full"
BROKEN = Finding(
    "CK203", "file-cut-short", Severity.ERROR, "the file is cut short", "a.pt", impact=Impact(resume=Verdict.BROKEN)
)
MEANT = Finding(
    "CK120", "save-only-model", Severity.NOTE, "saved for inference", "a.pt", impact=Impact(resume=Verdict.BROKEN)
)
WARNED = Finding("CK601", "mixed", Severity.WARNING, "two runs", ".")


def report(*findings: Finding, unreadable: tuple[str, ...] = ()) -> VerifyReport:
    worst = max((finding.impact.resume for finding in findings), key=lambda v: v.rank, default=Verdict.READY)
    checkpoint = CheckpointReport(
        "checkpoint-2",
        ("hf-trainer",),
        2,
        "structure",
        {Purpose.RESUME: worst, Purpose.INFERENCE: Verdict.READY},
        {Purpose.RESUME: (), Purpose.INFERENCE: ()},
        findings,
        (),
        files=3,
        size=10,
    )
    return VerifyReport("0", "out", "hf-trainer", (checkpoint,), unreadable=unreadable)


class Library:
    """Stands in for the verbs: ``answers`` are returned or raised by path, ``calls`` says how they were asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []

    def __call__(self, path: str, **options: Any) -> Any:
        self.calls.append(options)
        answer = self.answers[path]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    for verb in ("verify", "latest", "info", "explain"):
        monkeypatch.setitem(sys.modules, f"ckpt_tools.ops.{verb}", SimpleNamespace(**{verb: fake}))
    monkeypatch.delenv("CKPT_DEBUG", raising=False)
    return fake


Capture = pytest.CaptureFixture[str]


class TestVerify:
    @pytest.mark.parametrize(
        ("answers", "code"),
        [
            ([report()], 0),
            ([report(BROKEN)], 1),
            ([report(), report(BROKEN)], 1),
            ([report(unreadable=("x",)), report(BROKEN)], 3),
            ([NothingFoundError("no such path"), report()], 4),
            ([report(BROKEN), NothingFoundError("no such path")], 4),
            ([NothingFoundError("no such path"), SourceError("x", "denied")], 3),
        ],
    )
    def test_the_exit_code_over_several_paths(self, library: Library, answers: list[Any], code: int) -> None:
        library.answers = {f"p{number}": answer for number, answer in enumerate(answers)}
        assert main(["verify", *library.answers]) == code

    def test_a_missing_path_does_not_stop_the_others(self, library: Library, capsys: Capture) -> None:
        library.answers = {"a": NothingFoundError("a: no such path", hint="look around"), "b": report(BROKEN)}
        assert main(["verify", "a", "b"]) == 4
        out, err = capsys.readouterr()
        assert err == "ckpt: error: a: no such path\n  = help: look around\n"
        assert "error[CK203]: the file is cut short\n  --> a.pt\n" in out

    def test_several_paths_have_headings_and_one_has_none(self, library: Library, capsys: Capture) -> None:
        library.answers = {"a": report(), "b": report()}
        main(["verify", "a", "b"])
        out = capsys.readouterr().out
        assert out.startswith("a:\n")
        assert "\n\nb:\n" in out
        main(["verify", "a"])
        assert capsys.readouterr().out.startswith("checkpoint ")

    def test_json_is_one_line_per_path(self, library: Library, capsys: Capture) -> None:
        library.answers = {"a": report(BROKEN), "b": report()}
        assert main(["verify", "--format", "json", "a", "b"]) == 1
        documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [document["summary"]["errors"] for document in documents] == [1, 0]

    def test_github_annotates_the_path_as_typed(self, library: Library, capsys: Capture) -> None:
        library.answers = {"runs/a/": report(BROKEN)}
        assert main(["verify", "--format", "github", "runs/a/"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "::error file=runs/a/a.pt,title=CK203 file-cut-short::the file is cut short"
        assert lines[1].startswith("1 error in 1 checkpoint")

    def test_a_file_is_named_as_typed(self, library: Library, capsys: Capture, tmp_path: Path) -> None:
        file = tmp_path / "a.pt"
        file.touch()
        library.answers = {str(file): report(BROKEN)}
        main(["verify", "-q", str(file)])
        main(["verify", "-q", "--format", "github", str(file)])
        first, second = capsys.readouterr().out.splitlines()
        assert first == f"{file}: error[CK203]: the file is cut short"
        assert second.startswith(f"::error file={file},")

    @pytest.mark.parametrize(
        ("words", "findings", "lines", "code"),
        [
            ([], [], [], 0),
            ([], [WARNED], [], 0),
            ([], [WARNED, BROKEN], ["out/a.pt: error[CK203]: the file is cut short"], 1),
            (["--fail-on", "warning"], [WARNED], ["out: warning[CK601]: two runs"], 1),
            (["--for", "resume"], [MEANT], ["out/a.pt: note[CK120]: saved for inference"], 1),
            (["--for", "inference"], [MEANT, BROKEN], [], 0),
        ],
    )
    def test_quiet_says_only_what_fails(
        self,
        library: Library,
        capsys: Capture,
        words: list[str],
        findings: list[Finding],
        lines: list[str],
        code: int,
    ) -> None:
        library.answers = {"out": report(*findings)}
        assert main(["verify", "-q", *words, "out"]) == code
        assert capsys.readouterr().out.splitlines() == lines

    def test_unreadable_files_are_named_on_stderr(self, library: Library, capsys: Capture) -> None:
        library.answers = {"out": report(unreadable=("checkpoint-2/a\x1b.pt",))}
        assert main(["verify", "out"]) == 3
        assert capsys.readouterr().err == "could not be read: checkpoint-2/a\\x1b.pt\n"

    def test_options_reach_the_library(self, library: Library) -> None:
        library.answers = {"out": report()}
        selection = ["--select", "CK2,ck203", "--select", "CK21", "--ignore", "CK20"]
        deep = ["--deep", "--sample", "1/7", "-j", "3", "--against", "m.json"]
        main(["verify", *selection, *deep, "--settle", "0", "--world-size", "8", "--load", "out"])
        assert library.calls == [
            {
                "deep": True,
                "sample": "1/7",
                "jobs": 3,
                "against": "m.json",
                "data": (),
                "select": ("CK2", "CK203", "CK21"),
                "ignore": ("CK20",),
                "settle": 0.0,
                "world_size": 8,
                "load": True,
                "allow_in_progress": False,
                "progress": SILENT,
            }
        ]

    def test_colour_follows_the_option_and_the_environment(
        self, library: Library, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library.answers = {"out": report(BROKEN)}

        def colored(*words: str) -> bool:
            main(["verify", *words, "out"])
            return "\x1b[" in capsys.readouterr().out

        assert not colored()
        assert colored("--color", "always")
        monkeypatch.setattr("ckpt_tools.cli.console.is_terminal", lambda _: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert colored()
        assert not colored("--color", "never")
        monkeypatch.setenv("NO_COLOR", "1")
        assert not colored()
        assert colored("--color", "always")


class TestLatest:
    def found(self, path: str | None, unreadable: tuple[str, ...] = ()) -> LatestReport:
        passed = (Passed("out/checkpoint-4", Verdict.BROKEN, (BROKEN,)),)
        return LatestReport("0", "out", Purpose.RESUME, path, 2, passed, unreadable=unreadable)

    def test_stdout_is_the_path_and_nothing_else(self, library: Library, capsys: Capture) -> None:
        library.answers = {"out": self.found("out/checkpoint-2")}
        assert main(["latest", "out"]) == 0
        out, err = capsys.readouterr()
        assert out == "out/checkpoint-2\n"
        assert err == "skipped out/checkpoint-4 (broken): a.pt: the file is cut short [CK203]\n"
        assert library.calls[0]["purpose"] is Purpose.RESUME

    def test_quiet_keeps_the_reasons(self, library: Library, capsys: Capture) -> None:
        library.answers = {"out": self.found("out/checkpoint-2")}
        main(["latest", "-q", "out"])
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("answer", "code"),
        [((None,), 1), ((None, ("x",)), 3), (NothingFoundError("nothing"), 4)],
    )
    def test_nothing_good_is_told_from_nothing_there(
        self, library: Library, capsys: Capture, answer: Any, code: int
    ) -> None:
        library.answers = {"out": self.found(*answer) if isinstance(answer, tuple) else answer}
        assert main(["latest", "out"]) == code
        assert capsys.readouterr().out == ""

    def test_json(self, library: Library, capsys: Capture) -> None:
        library.answers = {"out": self.found(None)}
        assert main(["latest", "--format", "json", "--for", "inference", "out"]) == 1
        assert json.loads(capsys.readouterr().out)["path"] is None
        assert library.calls[0]["purpose"] is Purpose.INFERENCE


class TestErrors:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["nonsense"],
            ["verify"],
            ["verify", "--nonsense", "x"],
            ["verify", "--select", "CK9999", "x"],
            ["verify", "--select", ",", "x"],
            ["verify", "--ignore", "C", "x"],
            ["verify", "--fail-on", "bad", "x"],
            ["verify", "--settle", "-1", "x"],
            ["verify", "--settle", "nan", "x"],
            ["verify", "--settle", "inf", "x"],
            ["verify", "--world-size", "0", "x"],
            ["verify", "--format", "xml", "x"],
            ["latest"],
            ["latest", "a", "b"],
            ["info"],
            ["explain"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_is_2_and_says_where_help_is(self, words: list[str], capsys: Capture) -> None:
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "--help" in err

    def test_a_typo_gets_a_suggestion(self, capsys: Capture) -> None:
        assert main(["verfy", "x"]) == 2
        assert "did you mean 'verify'?" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("error", "code"), [(CkptError("e"), 3), (UsageError("e"), 2), (NothingFoundError("e"), 4)]
    )
    @pytest.mark.parametrize("verb", ["verify", "latest", "info", "explain"])
    def test_the_users_errors_are_one_line(
        self, library: Library, capsys: Capture, verb: str, error: CkptError, code: int
    ) -> None:
        library.answers = {"x": error}
        assert main([verb, "x"]) == code
        assert capsys.readouterr() == ("", "ckpt: error: e\n")

    def test_errors_cannot_command_the_terminal(self, library: Library, capsys: Capture) -> None:
        library.answers = {"x": CkptError("\x1b[2Ja\nb", hint="\x07")}
        main(["verify", "x"])
        assert capsys.readouterr().err == "ckpt: error: \\x1b[2Ja\\nb\n  = help: \\x07\n"

    @pytest.mark.parametrize("error", [KeyError("oops"), RecursionError("oops"), AssertionError("oops")])
    def test_a_bug_of_ours_is_one_line_and_3(
        self, library: Library, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        library.answers = {"x": error}
        assert main(["verify", "x"]) == 3
        err = capsys.readouterr().err
        assert "oops" in err
        assert "this is a bug in ckpt-tools" in err
        assert "CKPT_DEBUG=1" in err
        assert "Traceback" not in err
        monkeypatch.setenv("CKPT_DEBUG", "1")
        with pytest.raises(type(error)):
            main(["verify", "x"])

    @pytest.mark.parametrize("verb", ["verify", "latest", "info", "explain"])
    def test_an_interrupt_is_130(self, library: Library, capsys: Capture, verb: str) -> None:
        library.answers = {"x": KeyboardInterrupt()}
        assert main([verb, "x"]) == 130
        assert "Traceback" not in capsys.readouterr().err


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "ckpt_tools", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=options.pop("capture", True), check=False, **options)


class TestStreams:
    def closed(self) -> int:
        """Return the writing end of a pipe that nobody reads."""
        reading, writing = os.pipe()
        os.close(reading)
        return writing

    @pytest.mark.parametrize("words", [["--version"], ["--help"], ["verify", RUN], ["latest", RUN]], ids=" ".join)
    def test_a_reader_that_goes_away_changes_nothing(self, words: list[str]) -> None:
        done = run(*words, capture=False, stdout=self.closed(), stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
    def test_a_full_disk_is_told(self) -> None:
        with open("/dev/full", "wb") as full:
            done = run("verify", RUN, capture=False, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 3
        assert done.stderr == b"ckpt: error: the result could not be written: no space left on device\n"

    @pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-"])
    def test_closed_streams_do_not_crash(self, shell: str) -> None:
        command = f"{sys.executable} -m ckpt_tools verify {RUN} {shell}"
        done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")

    def test_an_ascii_terminal_gets_escapes(self, tmp_path: Path) -> None:
        os.symlink(REPOSITORY / RUN, tmp_path / "läuft")
        done = run("verify", str(tmp_path / "läuft"), env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0
        assert b"l\\xe4uft" in done.stdout

    def test_latest_prints_the_exact_bytes_of_a_path(self, tmp_path: Path) -> None:
        name = os.fsencode(tmp_path) + b"/l\xe4uft\n"
        os.symlink(os.fsencode(REPOSITORY / RUN), name)
        done = run("latest", "-q", os.fsdecode(name))
        assert done.returncode == 0
        assert done.stdout == name + b"/checkpoint-6\n"


class TestProgress:
    def test_a_bar_appears_only_when_work_takes_long(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        from ckpt_tools.cli import console

        monkeypatch.setattr(console, "is_terminal", lambda _: True)
        clock: Callable[[], float] = iter([0.0, 0.1, 10.0]).__next__
        monkeypatch.setattr(console.time, "monotonic", clock)
        with console.progress().task("reading \x1b", 100, "B") as task:
            task.advance(10)
            assert capsys.readouterr().err == ""
            task.advance(10)
            assert "reading \\x1b" in capsys.readouterr().err
            task.advance(80)

    def test_silence_without_a_terminal_or_when_quiet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ckpt_tools.cli import console

        assert console.progress() is SILENT
        monkeypatch.setattr(console, "is_terminal", lambda _: True)
        assert console.progress(quiet=True) is SILENT
