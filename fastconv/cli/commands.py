"""The commands that work on problems: tune, explain, bench, list, warmup; and the list of all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from fastconv import algorithms, dispatch, networks
from fastconv._version import __version__
from fastconv.cli import machine, network, train, wisdom
from fastconv.cli.output import (
    Json,
    emit,
    kibibytes,
    microseconds,
    note,
    progress_bars,
    share,
    show_table,
    user_errors,
)  # fmt: skip
from fastconv.descriptor import parse
from fastconv.plan import explain as explain_choice
from fastconv.problem import ConvProblem, Problem
from fastconv.tuning import measure, peak, search, warm
from fastconv.tuning import wisdom as wisdom_store

app = typer.Typer(
    name="fastconv", no_args_is_help=True, pretty_exceptions_enable=False,
    help="Tune, explain and measure convolutions and poolings on this machine.",
)  # fmt: skip
app.add_typer(wisdom.app, name="wisdom")
app.command("info")(machine.info)
app.command("summary")(network.summary)
app.command("train-demo")(train.train_demo)

Targets = Annotated[list[str], typer.Argument(help="Networks or descriptors, such as n1c64h56w56k64r3s3p1_nhwc.")]
Batch = Annotated[int, typer.Option(help="Images at a time, for networks.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64, for networks.")]
Format = Annotated[str, typer.Option(help="channels_last or contiguous, for networks.")]
Threads = Annotated[int | None, typer.Option(help="Threads that kernels may use; all of Numba's by default.")]
Algorithm = Annotated[str | None, typer.Option(help="Ask for this algorithm.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def _problems(targets: Iterable[str], batch: int, dtype: str, memory_format: str, raw: bool = False) -> list[Problem]:
    found = search.resolve(
        [networks.problems(t, batch, dtype, memory_format) if t in networks.names() else _parse(t) for t in targets]
    )
    return [replace(p, raw=True) if raw and isinstance(p, ConvProblem) else p for p in found]


def _in_direction(wanted: list[Problem], direction: str) -> list[Problem]:
    """The convolutions' passes of that direction, or all of them; what is a gradient already stays."""
    every = ["forward", "backward_input", "backward_weight"]
    if direction not in (*every, "all"):
        raise ValueError(f"direction must be one of {', '.join(every)}, all, got {direction!r}")
    found: list[Problem] = []
    for problem in wanted:
        if isinstance(problem, ConvProblem) and problem.direction == "forward":
            passes = every if direction == "all" else [direction]
            found += [problem if d == "forward" else problem.without_epilogue(d) for d in passes]
        else:
            found.append(problem)
    return list(dict.fromkeys(found))


def _parse(target: str) -> Problem:
    try:
        return parse(target)
    except ValueError as error:
        raise ValueError(f"{error}; nor is {target!r} a network: {', '.join(networks.names())}") from None


@app.command()
@user_errors()
def tune(
    targets: Targets,
    batch: Batch = 1,
    threads: Threads = None,
    dtype: Dtype = "float32",
    memory_format: Format = "channels_last",
    direction: Annotated[
        str, typer.Option(help="forward, backward_input, backward_weight, or all: of a training step.")
    ] = "forward",
    raw: Annotated[
        bool, typer.Option("--raw", help="For fastconv.conv2d, which gets weights as they are, instead of plans.")
    ] = False,
    budget: Annotated[float | None, typer.Option(help="Seconds for everything together.")] = None,
    retune: Annotated[bool, typer.Option("--retune", help="Measure again what is known.")] = False,
    json: Json = False,
) -> None:
    """Measure the candidates for each problem and remember the winners.

    Interrupted, it keeps what it has; run again, it skips what it knows.
    """
    wanted = _in_direction(_problems(targets, batch, dtype, memory_format, raw), direction)
    wisdom_store.check_writable()  # what is measured here is of use only if it is kept
    results: list[search.Result] = []
    interrupted = False
    with progress_bars() as bars:
        try:
            for result in search.tune_each(wanted, budget, threads, retune, _reporter(bars)):
                results.append(result)
                if json:
                    emit(_result(result))
        except KeyboardInterrupt:
            interrupted = True
    if not json:
        _show_results(results)
    if disturbed := sum(result.disturbed for result in results):
        note(f"other programs used the CPU while {disturbed} problem(s) were measured; --retune when they are done")
    if interrupted:
        note(f"kept {len(results)} of {len(wanted)} problems, run again for the others")
        raise typer.Exit(130)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _reporter(bars: Any) -> Callable[[Problem, float, str], None]:
    """A bar for each problem, added when its turn comes."""
    tasks: dict[Problem, Any] = {}

    def report(problem: Problem, done: float, step: str) -> None:
        if problem not in tasks:
            tasks[problem] = bars.add_task(problem.descriptor, total=1.0, step="")
        bars.update(tasks[problem], completed=done, step=step)

    return report


def _result(result: search.Result) -> dict[str, Any]:
    entry = result.entry and result.entry.as_dict()
    return {
        "problem": result.problem.descriptor, "status": result.status, "entry": entry,
        "rejected": list(result.rejected), "disturbed": result.disturbed,
    }  # fmt: skip


def _show_results(results: list[search.Result]) -> None:
    rows = []
    for result in results:
        cells = wisdom.cells(result.entry) if result.entry else [result.problem.descriptor] + ["-"] * 7
        rows.append([*cells, result.status])
    show_table(None, wisdom.COLUMNS | {"status": "left"}, rows)


@app.command()
@user_errors()
def explain(
    descriptor: Annotated[str, typer.Argument(help="A problem, such as n1c64h56w56k64r3s3p1_nhwc.")],
    algorithm: Algorithm = None,
    threads: Threads = None,
    max_workspace: Annotated[int | None, typer.Option(help="Most bytes of scratch memory for one call.")] = None,
    json: Json = False,
) -> None:
    """Say which algorithm runs for a problem, why, and what it costs; nothing is timed."""
    allowed = search.check_threads(threads)
    kernel, choice = dispatch.kernel_for(parse(descriptor), algorithm, allowed, max_workspace)
    account = explain_choice(parse(descriptor), kernel, choice)
    second = choice.entry and choice.entry.runner_up
    if json:
        entry = choice.entry and choice.entry.as_dict()
        emit({**account.as_dict(), "entry": entry})
        return
    typer.echo(str(account))
    if second:
        typer.echo(f"  runner-up     {second}, {choice.entry.margin:+.1%}")


@app.command()
@user_errors()
def bench(
    targets: Targets,
    batch: Batch = 1,
    threads: Threads = None,
    dtype: Dtype = "float32",
    memory_format: Format = "channels_last",
    seconds: Annotated[float, typer.Option(help="Timing of one problem.")] = 2.0,
    json: Json = False,
) -> None:
    """Time the best known parameters of every algorithm, in turns; nothing is remembered."""
    allowed = search.check_threads(threads)
    rows = []
    with progress_bars() as bars:
        report = _reporter(bars)
        for problem in _problems(targets, batch, dtype, memory_format):
            with measure.on_device(problem):
                found = _bench(problem, wisdom_store.usable_threads(problem, allowed), seconds, report)
            if json:
                for row in found:
                    emit(row)
            rows += found
    if json:
        return
    columns = {"problem": "left", "algorithm": "left", "threads": "right", "best": "right", "median": "right"}
    columns |= {"GFLOP/s": "right", "peak": "right", "workspace": "right", "chosen": "left"}
    show_table(None, columns, map(_bench_cells, rows))


def _bench(
    problem: Problem, threads: int, seconds: float, report: Callable[[Problem, float, str], None]
) -> list[dict[str, Any]]:
    """Rows of one problem, the fastest first."""
    report(problem, 0.0, "compiling")
    names = algorithms.supporting(problem)
    names = [name for name in names if name != "reference"] or names
    choices = {name: dispatch.choose(problem, name, threads) for name in names}
    work = measure.workload(problem)
    ready = {n: measure.prepare(problem, c.candidate, work, c.threads) for n, c in choices.items()}
    timings = measure.interleave(
        {name: call for name, (_, call) in ready.items()}, seconds, progress=lambda f: report(problem, f, "timing"),
        timer=work.timer,
    )  # fmt: skip
    best_peak, chosen = peak.ceiling(problem, threads), dispatch.choose(problem, None, threads).candidate
    rows = []
    for name in sorted(names, key=lambda name: timings[name].best_ns):
        timing, candidate = timings[name], choices[name].candidate
        gflops = problem.flops / timing.best_ns
        rows.append(
            {
                "problem": problem.descriptor, "algorithm": name, "params": dict(candidate.params),
                "threads": choices[name].threads, "best_ns": timing.best_ns, "median_ns": timing.median_ns,
                "gflops": gflops, "peak_fraction": best_peak and gflops / best_peak,
                "workspace": ready[name][0].workspace_bytes, "chosen": candidate == chosen,
            }
        )  # fmt: skip
    return rows


def _bench_cells(row: dict[str, Any]) -> list[str]:
    params = [f"{name}={value}" for name, value in row["params"].items()]
    return [
        row["problem"], " ".join([row["algorithm"], *params]), str(row["threads"]), microseconds(row["best_ns"]),
        microseconds(row["median_ns"]), f"{row['gflops']:.1f}", share(row["peak_fraction"]),
        kibibytes(row["workspace"]), "yes" if row["chosen"] else "",
    ]  # fmt: skip


@app.command("list")
@user_errors()
def list_(
    network: Annotated[str | None, typer.Argument(help="List the descriptors of this network.")] = None,
    batch: Batch = 1,
    dtype: Dtype = "float32",
    memory_format: Format = "channels_last",
    json: Json = False,
) -> None:
    """List networks and algorithms, or the layers of one network."""
    if network is not None:
        found = [p.descriptor for p in networks.problems(network, batch, dtype, memory_format)]
        emit(found) if json else typer.echo("\n".join(found))
        return
    known = {operation: algorithms.names(operation) for operation in ("conv", "pool")}
    layers = {name: len(networks.problems(name)) for name in networks.names()}
    if json:
        emit({"networks": layers, "algorithms": known})
        return
    for name, count in layers.items():
        typer.echo(f"network    {name}  {count} distinct convolutions")
    for operation, found in known.items():
        typer.echo(f"algorithm  {operation}  {', '.join(found)}")


@app.command()
@user_errors()
def warmup(
    dtype: Annotated[list[str], typer.Option(help="float32 or float64; may be repeated.")] = ["float32"],  # noqa: B006
    json: Json = False,
) -> None:
    """Compile the kernels of every algorithm, and the usual pooling windows, into the disk cache.

    First calls are fast then. It takes some minutes.
    """
    menu = warm.menu(dtype)
    with progress_bars() as bars:
        task = bars.add_task("compiling", total=1.0, step="")
        done = warm.compile_menu(menu, lambda f, step: bars.update(task, completed=f, step=step))
    facts = {**asdict(done), "cache": machine.cache_path()}
    if json:
        emit(facts)
    else:
        typer.echo(f"{done.kernels} kernels ready in {done.seconds:.1f} s, cached in {facts['cache'] or 'no folder'}")
