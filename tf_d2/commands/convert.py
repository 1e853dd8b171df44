"""``tf-d2 convert``: checkpoints between detectron2 and Keras, both ways, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from tf_d2.commands.options import (
    ConventionsOption,
    IgnoreKeysOption,
    IgnoreTensorsOption,
    OptsArgument,
    PrefixOption,
    checked_opts,
    import_tensorflow,
    terminated_by_exception,
)

if TYPE_CHECKING:  # imported by the functions that need them: --help does not
    import numpy as np

    import weights
    from weights import Checkpoint

_SUFFIXES = (".weights.h5", ".pkl", ".pth", ".safetensors")
_Specs = dict[str, tuple[int, ...]]


def register(app: typer.Typer) -> None:
    """Add ``convert`` to the command line."""
    app.command("convert", no_args_is_help=True)(convert)


def convert(
    checkpoint: Annotated[str, typer.Option("--weights", help="Checkpoint of any format, or a zoo name.")],
    output: Annotated[Path, typer.Option("--output", help=f"File to write: {', '.join(_SUFFIXES)}.")],
    config: Annotated[
        str | None,
        typer.Option("--config-file", help="detectron2 YAML or zoo name; a .weights.h5 carries its own."),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights of a training file.")] = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Convert NaN and infinite values, with a warning.")
    ] = False,
    ignore_keys: IgnoreKeysOption = None,
    ignore_tensors: IgnoreTensorsOption = None,
    prefix: PrefixOption = None,
    conventions: ConventionsOption = None,
    opts: OptsArgument = None,
) -> None:
    """Convert a checkpoint; the suffix of the output decides the direction.

    To .weights.h5: Keras weights that `model.load_weights` and `Predictor` read, with config and provenance
    inside. To .pkl or .pth: what detectron2's DetectionCheckpointer loads. Whatever is written is read back
    and compared.
    """
    from tf_d2.config.parts.conventions import with_conventions

    words = with_conventions(checked_opts(opts), conventions)
    reading = Reading(ema, allow_nonfinite, tuple(ignore_keys or ()), tuple(ignore_tensors or ()), prefix)
    with terminated_by_exception():
        count = run(checkpoint, output, config, words, reading)
    typer.echo(f"{output}: {count} tensors, read back and equal bit by bit")


@dataclass(frozen=True)
class Reading:
    """How checkpoint and configuration are read and the model is filled: arguments of :func:`tf_d2.load_model`."""

    ema: bool = False
    allow_nonfinite: bool = False
    ignore_keys: tuple[str, ...] = ()
    ignore_tensors: tuple[str, ...] = ()
    prefix: str | None = None

    def arrays(
        self, checkpoint: Checkpoint, state: dict[str, np.ndarray], model: _Model
    ) -> dict[str, np.ndarray]:
        """The variables of the model."""
        import weights

        return weights.to_keras_arrays(
            state,
            model.specs,
            allow_nonfinite=self.allow_nonfinite,
            path=checkpoint.path,
            frozen=model.frozen,
            ignore=self.ignore_tensors,
        )

    def kept(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``state`` without the tensors that are left out."""
        import weights

        return {k: array for k, array in state.items() if not weights.is_ignored(k, self.ignore_tensors)}


def run(
    source: str,
    output: Path,
    config: str | None,
    opts: Sequence[str] = (),
    reading: Reading = Reading(),
) -> int:
    """Convert ``source`` into ``output``; returns the number of tensors of the model.

    Raises:
        WeightsError: the checkpoint cannot be read or written, or is not one of the config's model.
        tf_d2.config.ConfigError: the config cannot be read or asks for something unsupported.
    """
    import weights
    from tf_d2.config import resolve_weights
    from tf_d2.config.download import split_matching
    from weights import WeightsError

    if not output.name.endswith(_SUFFIXES):
        raise WeightsError(f"{output}: the output must end in {', '.join(_SUFFIXES)}")
    if not output.parent.is_dir():
        raise WeightsError(f"{output}: there is no folder {output.parent}")
    path = resolve_weights(source)
    if output.exists() and output.samefile(path):
        raise WeightsError(f"{output}: the output would replace the input")
    checkpoint = weights.read_checkpoint(path, ema=reading.ema, prefix=reading.prefix)
    checkpoint.matching_heuristics |= split_matching(source)[1]
    config_yaml = _config_yaml(checkpoint, config, opts, reading.ignore_keys)
    if not output.name.endswith(".weights.h5"):
        return _to_detectron2(checkpoint, output, config_yaml, reading)
    if config_yaml is None:
        raise WeightsError(f"{checkpoint.path} holds no config: give it with --config-file")
    with ThreadPoolExecutor(1) as beside:
        provenance = beside.submit(_provenance, checkpoint)  # hashes the file beside everything else
        return _to_keras(checkpoint, output, config_yaml, provenance, reading)


@dataclass(frozen=True)
class _Model:
    """The variables of a model: paths and shapes, and which are the statistics of frozen norms."""

    specs: _Specs
    frozen: frozenset[str]


def _config_yaml(
    checkpoint: Checkpoint, config: str | None, opts: Sequence[str], ignore_keys: Sequence[str]
) -> str | None:
    """The config as YAML text: the one given, or the one that travels in the file."""
    from tf_d2.config import resolve_yaml, resolve_yaml_text
    from weights import WeightsError

    if config is not None:
        return resolve_yaml(config, opts, ignore_keys=ignore_keys)
    if opts and checkpoint.config is None:
        raise WeightsError("--opts and --conventions change a config; give it with --config-file")
    return resolve_yaml_text(checkpoint.config, opts) if opts and checkpoint.config else checkpoint.config


def _variables(config_yaml: str) -> _Model:
    """The model's variables, without allocating any of them."""
    import_tensorflow()
    import keras

    from tf_d2.config import load_config_text
    from tf_d2.modeling import build_model

    parsed = load_config_text(config_yaml)
    with keras.StatelessScope(initialize_variables=False):
        model = build_model(parsed)
        return _Model(model.variable_specs(), model.frozen_statistics())


def _to_keras(
    checkpoint: Checkpoint,
    output: Path,
    config_yaml: str,
    provenance: Future[dict[str, str]],
    reading: Reading,
) -> int:
    import weights

    model = _variables(config_yaml)
    specs = model.specs
    state = weights.matched_state(checkpoint, specs)
    arrays = reading.arrays(checkpoint, state, model)
    keys = {weights.path_to_key(path) for path in specs}
    with _progress(checkpoint) as advance:
        weights.write_keras_h5(
            output,
            arrays,
            provenance=provenance.result,
            config_yaml=config_yaml,
            extra_state=weights.split_harmless(state, state.keys() - keys),
            source=state,
            progress=advance,
        )
    return len(arrays)


def _to_detectron2(checkpoint: Checkpoint, output: Path, config_yaml: str | None, reading: Reading) -> int:
    """Write the state dict; with a config, only after checking that it is complete."""
    import weights
    from weights import WeightsError

    state = checkpoint.state
    if config_yaml is not None:
        model = _variables(config_yaml)
        state = weights.matched_state(checkpoint, model.specs)
        arrays = reading.arrays(checkpoint, state, model)
        filled = {weights.path_to_key(path): array for path, array in arrays.items()}
        state = {**state, **{key: array for key, array in filled.items() if key not in state}}
    elif checkpoint.matching_heuristics:
        raise WeightsError(f"{checkpoint.path}: its names must be matched to a model; give --config-file")
    state = reading.kept(state)
    write: Callable[..., None] = {
        ".pkl": weights.write_detectron2_pkl,
        ".pth": weights.write_pth,
        ".safetensors": weights.write_safetensors,
    }[output.suffix]
    with _progress(checkpoint) as advance:
        write(output, state, progress=advance)
    return len(state)


def _provenance(checkpoint: Checkpoint) -> dict[str, str]:
    """Where the weights come from; kept from a converted file that is converted again."""
    if checkpoint.format == "keras-h5" and "source_sha256" in checkpoint.metadata:
        return checkpoint.metadata
    import numpy as np

    facts = {
        "source": Path(checkpoint.path).name,
        "source_sha256": checkpoint.sha256,
        "source_format": checkpoint.format,
        "source_iteration": "" if checkpoint.iteration is None else str(checkpoint.iteration),
        "source_author": checkpoint.author or "",
        "numpy_version": np.__version__,
        "tf_d2_version": _own_version(),
    }
    return {name: value for name, value in facts.items() if value}


def _own_version() -> str:
    try:
        return version("tf-d2")
    except PackageNotFoundError:
        return ""  # running from a source tree that is not installed


@contextmanager
def _progress(checkpoint: Checkpoint) -> Iterator[weights.Progress]:
    """A bar over the bytes to write and to compare; silent where nobody watches."""
    console = Console(stderr=True)
    total = 2 * sum(array.nbytes for array in checkpoint.state.values())
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=total)
        yield lambda count: bar.advance(task, count)
