"""``stage-sc label``, ``summary`` and ``report``: functions of the package as a command."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import stage_sc as st

COMMANDS = {
    "label": "label slides in files that need not fit into memory together",
    "summary": "tell what is in files, and what is wrong with them, without labelling",
    "report": "write one HTML page with the niches of all cells in labelled files",
}
STATUS = "Exit status: 0, or 1 after an error, 2 for wrong options, 3 if files were left out or have a problem."
LEFT_OUT = 3
# Options with one or more values.
SEVERAL = ("keys", "genes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status; `argv` are the arguments (default: those of the process)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = vars(_parser(argv).parse_args(argv))
    command, debug = options.pop("command"), options.pop("debug")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.simplefilter("ignore", SyntaxWarning)  # of packages, while they are imported
    try:
        return {"label": _label, "summary": _summary, "report": _report}[command](options)
    except KeyboardInterrupt:
        _say("interrupted. The same command continues.")
        return 130
    except Exception as error:
        if debug:
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or repr(error)
        _say(f"error: {' '.join(text.split())}")
        return 1


def _say(text: str) -> None:
    print(f"stage-sc: {text}", file=sys.stderr)


def _label(options: dict[str, Any]) -> int:
    files, workers = options.pop("files"), options.pop("workers")
    with _cluster(workers, options):
        results = st.tl.label_files(files, **options)
    for result in results:
        print(result)
    return LEFT_OUT if len(results) < len(files) else 0


def _summary(options: dict[str, Any]) -> int:
    files, save = options.pop("files"), options.pop("csv")
    table = st.pp.summarize(files, **options)
    if save is None:
        texts = ["warning", "problem"]
        print(table.drop(columns=texts).to_string(float_format="{:.4g}".format))
        for name, row in table[texts].iterrows():
            for kind, text in row[row != ""].items():
                print(f"{kind}: {name}: {str(text).removeprefix(f'Slide {name!r}: ')}")
    else:
        table.to_csv(save)
    return LEFT_OUT if table["problem"].fillna("").astype(bool).any() else 0


def _report(options: dict[str, Any]) -> int:
    files, path = options.pop("files"), options.pop("path")
    print(st.report(files if len(files) > 1 else files[0], path, **options))
    return 0


@contextmanager
def _cluster(workers: int | None, options: dict[str, Any]) -> Iterator[None]:
    """Start worker processes, or connect to a scheduler that is named by its address."""
    address: Any = options.get("scheduler") or ""
    if workers is None and "://" not in address:
        yield
        return
    if workers is not None and address:
        raise ValueError("`--workers` starts workers on this machine: leave `--scheduler` away.")
    if workers is not None and workers < 1:
        raise ValueError(f"`--workers` must be at least 1, got {workers}.")
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("Workers need distributed: run `pip install distributed`.") from error
    options["scheduler"] = None
    for name in ("distributed", "tornado"):  # every step of a cluster
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.enter_context(suppress(TimeoutError))  # of workers that end slowly, when all is done
        if workers is not None:
            address = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50)
            stack.enter_context(address)
        stack.enter_context(Client(address))
        yield


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Parser of all commands, with the options of the one that is asked for: the others need not be imported."""
    parser = argparse.ArgumentParser(
        prog="stage-sc", description="Spatial niches of tissue.", epilog="More: stage-sc COMMAND --help"
    )
    parser.add_argument("--version", action="version", version=f"stage-sc {st.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=STATUS)
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        if name in argv:
            {"label": _add_label, "summary": _add_summary, "report": _add_report}[name](command)
    return parser


def _add_label(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, st.tl.label_files)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="label N files at a time, in processes on this machine (by dask)"
    )


def _add_summary(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, st.pp.summarize, like=st.tl.label_files)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to a file instead of printing it")


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, st.report, files="Labelled .h5ad files, or zarr folders of AnnData or SpatialData.")


def _add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    like: Callable[..., Any] | None = None,
    files: str = "",
) -> None:
    """Add the arguments of a function, with the help of its docstring or of the function `like` it; files are first."""
    own, described = (read_parameters(inspect.getdoc(one) or "") for one in (function, like))
    described |= {name: text for name, text in own.items() if not (text.startswith("As in") and name in described)}
    described["scheduler"] = 'Scheduler of dask: "threads", "processes", or the address of a cluster such as tcp://….'
    for position, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        text, kind = described.get(name, ""), str(parameter.annotation)
        if position == 0:
            parser.add_argument("files", nargs="+", metavar="FILE", help=files or described["files"])
            continue
        flag, default = f"--{name.replace('_', '-')}", parameter.default
        if name == "path":
            parser.add_argument("--out", dest=name, required=True, metavar="FILE", help=text)
        elif default is inspect.Parameter.empty:
            parser.add_argument(flag, required=True, metavar="FOLDER", help=text)
        elif name in SEVERAL:
            parser.add_argument(flag, nargs="+", default=default, metavar=name.upper(), help=text)
        elif kind == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        elif kind == "Errors":
            parser.add_argument(flag, choices=["skip", "raise"], default=default, help=text)
        else:
            number = {"int": int, "float": float}.get(kind.split(" ")[0])
            parser.add_argument(flag, type=number or str, default=default, metavar=name.upper(), help=text)


def read_parameters(doc: str) -> dict[str, str]:
    """Descriptions of the parameters in a docstring, as plain text for `argparse`."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ,]*\n-+$|\Z)", doc, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^(\w+(?:, \w+)*)$", section[1] if section else "", flags=re.MULTILINE)
    names_of_all = {name for names in parts[1::2] for name in names.split(", ")}
    return {
        name: _as_plain(text, names_of_all)
        for names, text in zip(parts[1::2], parts[2::2], strict=True)
        for name in names.split(", ")
    }


def _as_plain(text: str, names: set[str]) -> str:
    """Text of a docstring without markup, with options in place of arguments."""

    def plain(found: re.Match[str]) -> str:
        word = found[1] or found[2]
        if word == "None":
            return "Default"
        switch = re.fullmatch(r"(\w+)=(True|False)", word)
        name = switch[1] if switch else word
        option = f"--{'no-' if switch and switch[2] == 'False' else ''}{name.replace('_', '-')}"
        return option if name in names else word

    return re.sub(r":\w+:`~?([^`]*)`|`+([^`]*)`+", plain, " ".join(text.split())).replace("%", "%%")
