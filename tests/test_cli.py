"""The command line's frame: lists after one option, exit codes, errors as one line."""

import io
import sys

import pytest
import typer

from tf_d2 import cli
from tf_d2.commands.options import checked_opts, write_atomically
from weights import UsageError


@pytest.mark.parametrize(
    "words, expected",
    [
        ("predict --input a b c --output d", "predict --input=a --input=b --input=c --output d"),
        ("predict --opts A 1 B -2 --input x", "predict --opts=A --opts=1 --opts=B --opts=-2 --input=x"),
        ("predict --input=a --output d", "predict --input=a --output d"),
        ("predict --input --output d", "predict --output d"),
        ("zoo list", "zoo list"),
        ("--help", "--help"),
        ("", ""),
    ],
)
def test_lists_are_spread(words, expected):
    assert cli.spread_lists(words.split(), ("--input", "--opts")) == expected.split()


def commands():
    """Every command of the program with its words, those below others included."""
    root = typer.main.get_command(cli.make_app())
    todo = [([name], root.get_command(None, name)) for name in root.list_commands(None)]
    while todo:
        words, command = todo.pop()
        yield words, command
        todo += [([*words, name], below) for name, below in getattr(command, "commands", {}).items()]


# What may be repeated, but takes one value at a time.
REPEATED = {"bench run --backend", "parity rejudge --noise", "parity mutations --only"}


def test_an_option_that_takes_several_values_says_so_where_it_is_declared():
    seen = {}
    for words, command in commands():
        for p in command.params:
            if p.param_type_name == "option" and p.multiple:
                marked = set(p.opts) <= cli.list_options(command, [])
                seen[" ".join([*words, p.opts[0]])] = marked
    assert {name for name, marked in seen.items() if not marked} == REPEATED
    assert seen["predict --opts"] and seen["parity run --input"] and seen["batch --input"]


@pytest.mark.parametrize(
    "name, words, expected",
    [
        ("predict", [], {"--input", "--opts", "--ignore-keys", "--ignore-tensors"}),
        ("parity", ["rejudge", "a", "b"], {"--waive"}),
        ("batch", ["--input", "a", "b"], {"--input"}),
        ("batch", ["merge", "a"], set()),
        ("bench", ["--only", "main"], set()),
        ("bench", ["--output", "a"], {"--opts"}),
    ],
)
def test_list_options_are_those_of_the_command_meant(name, words, expected):
    assert cli.list_options(dict((w[0], c) for w, c in commands() if len(w) == 1)[name], words) == expected


def test_lists_reach_the_command(capsys, tmp_path, monkeypatch):
    """Through the whole program, with numbers below zero among the values."""
    from tf_d2.commands import predict

    monkeypatch.setattr(
        predict, "checked_opts", lambda words: (_ for _ in ()).throw(UsageError("|".join(words)))
    )
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    words = [
        "--config-file",
        "c",
        "--input",
        str(picture),
        str(picture),
        "--output",
        str(tmp_path),
        "--opts",
        "K",
        "-1",
    ]
    assert run(["predict", *words], capsys)[2] == "tf-d2: error: K|-1\n"


def run(arguments, capsys):
    """(exit status, standard output, standard error)."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_help_lists_the_commands(capsys):
    status, out, _ = run(["--help"], capsys)
    assert status in (0, None)
    assert all(name in out for name in ("predict", "convert", "inspect", "export", "zoo", "demo", "parity"))


def test_an_unknown_command_is_status_2(capsys):
    status, _, err = run(["fly"], capsys)
    assert status == 2 and "No such command" in err


@pytest.mark.parametrize(
    "error, message",
    [
        (UsageError("the value"), "tf-d2: error: the value\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.pkl"),
            "tf-d2: error: x.pkl: No such file or directory\n",
        ),
        (OSError("plain"), "tf-d2: error: plain\n"),
        (MemoryError(), "tf-d2: error: MemoryError\n"),
        (UsageError("told"), "tf-d2: error: told\n"),
        (ValueError("of a library that reads a file"), "tf-d2: error: of a library that reads a file\n"),
        (KeyError("from within"), "tf-d2: error: internal error, KeyError: 'from within' (set TF_D2_DEBUG=1"),
        (RuntimeError("boom"), "tf-d2: error: internal error, RuntimeError: boom (set TF_D2_DEBUG=1"),
    ],
)
def test_errors_are_one_line_and_status_2(error, message, capsys, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(cli, "make_app", fail)
    monkeypatch.delenv("TF_D2_DEBUG", raising=False)
    status, out, err = run([], capsys)
    assert status == 2 and err.startswith(message) and out == ""
    assert err.count("\n") == 1 and "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch):
    def fail():
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "make_app", fail)
    monkeypatch.setenv("TF_D2_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        cli.main([])


def test_an_interrupt_is_status_130(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_app", interrupt)
    assert run([], capsys) == (130, "", "interrupted\n")


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    buffer = io.BytesIO()
    shown = io.TextIOWrapper(buffer, "ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown.write("ü.png: 3 instances")
    shown.flush()
    assert buffer.getvalue().endswith(rb"\xfc.png: 3 instances")


def test_opts_are_pairs():
    assert checked_opts(None) == [] and checked_opts(["A", "1"]) == ["A", "1"]
    with pytest.raises(ValueError, match="pairs KEY VALUE, got 1 words: A"):
        checked_opts(["A"])


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two" and path.stat().st_mode & 0o777 == 0o644

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"three")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_warning_is_one_line_without_a_place_in_the_code(monkeypatch):
    import warnings

    shown = []

    def make_app():
        def app(args: list[str]) -> None:
            shown.append((args, warnings.formatwarning(UserWarning("told"), UserWarning, "code.py", 3)))  # type: ignore

        return app

    monkeypatch.setattr(cli, "make_app", make_app)
    before = warnings.formatwarning
    cli.main(["--ignore-keys", "A", "B.*"])
    assert shown == [(["--ignore-keys", "A", "B.*"], "tf-d2: note: told\n")]
    assert warnings.formatwarning is before
