"""Running every planted bug and writing the kill table: is each one found, and blamed on the right stage?"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from parity.core.demo import embedded_demo, sample_picture
from parity.core.results import Comparison
from parity.core.status import EXIT_SAME, Verdict
from parity.judge.judge import compare
from parity.judge.sides import TraceLike
from parity.running.ops import Cases, run_ops
from parity.running.runner import resolved
from parity.running.sides import BackendChoice, BackendError, Setup, auto_reference
from parity.running.worker import Program, call_worker, run_backend
from parity.selftest.mutations import MUTATIONS, Mutation
from weights.errors import UsageError
from weights.writers import write_safetensors

Progress = Callable[[str], None]

_SMALL = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.WIDTH_PER_GROUP 8 "
    "MODEL.FPN.OUT_CHANNELS 32 INPUT.MIN_SIZE_TEST 160 INPUT.MAX_SIZE_TEST 280 TEST.DETECTIONS_PER_IMAGE 20 "
).split()
_HEADS = (
    "MODEL.RPN.POST_NMS_TOPK_TEST 100 MODEL.RPN.PRE_NMS_TOPK_TEST 200 MODEL.ROI_BOX_HEAD.FC_DIM 64 "
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.05 "
).split()

# Families beside the embedded checkpoint: published configurations at reduced width, with random weights.
FAMILIES: dict[str, tuple[str, Sequence[str]]] = {
    "keypoint": (
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x",
        [*_SMALL, *_HEADS, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(32, 32)"],
    ),
    "panoptic": (
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x",
        [
            *_SMALL,
            *_HEADS,
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "64"),
            *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "200"),
            *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", "0.1"),
        ],
    ),
    "retinanet": ("COCO-Detection/retinanet_R_50_FPN_3x", _SMALL),
}


# Families of detectron2's recordings in this repository, at reduced width: only detectron2 itself is their reference.
RECORDED = {
    "vitdet": "new_baselines/vitdet_b.h5",
    "mvit": "new_baselines/mvitv2_t.h5",
    "swin": "new_baselines/swin_b_cascade.h5",
    "fcos": "new_baselines/fcos.h5",
    "point_rend": "point_rend_densepose/pointrend_r50.npz",
    "point_rend_semantic": "point_rend_densepose/pointrend_semantic.npz",
    "densepose": "point_rend_densepose/densepose_dl_wc1m.npz",
    "cse": "point_rend_densepose/densepose_cse.npz",
    "deeplab": "deeplab_trident/deeplab_v3_plus.npz",
    "panoptic_deeplab": "panoptic_deeplab/cityscapes.npz",
    "trident": "deeplab_trident/tridentnet_fast_r50.npz",
    "tensor_mask": "tensor_mask/aligned.npz",
}
RECORDINGS = Path(__file__).parents[2] / "tests" / "data"

# Recordings of Detectron's own Python in this repository, at reduced width; the PyTorch reference is theirs.
OLDER = {
    "detectron": "mask_rcnn_R_50_FPN",
    "detectron_keypoint": "keypoint_rcnn_R_50_FPN",
    "detectron_retinanet": "retinanet_R_50_FPN",
}
OLDER_RECORDINGS = RECORDINGS / "detectron1"

_CONTROLS = ("self-noise", "identity")  # runs without a bug, per family; they must pass


@dataclass
class Outcome:
    """What became of one planted bug (or of a run without one, where ``expected`` is "the same")."""

    name: str
    model: str
    what: str
    expected: str
    exit_code: int
    first_bad: str = ""
    verdict: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """Found at all (runs without a bug: rightly found to be the same)."""
        return self.exit_code == (EXIT_SAME if self.expected == "the same" else 1)

    @property
    def blamed(self) -> bool:
        """Found, and the first bad stage is where the bug was planted."""
        if self.expected == "the same":
            return self.caught
        return self.caught and any(self.first_bad.startswith(b) for b in self.expected.split(" or "))


@dataclass(frozen=True)
class How:
    """How the bugs are run."""

    torch_python: str = sys.executable
    threads: int = 1
    timeout: float = 7200.0  # seconds for each family
    progress: Progress = lambda text: None


def run_mutations(output: Path, names: Sequence[str] = (), how: How = How()) -> list[Outcome]:
    """Run the bugs called ``names`` (default: all), family by family, and the runs without a bug. Raises
    ValueError for unknown names and BackendError when a family cannot run at all."""
    unknown = sorted(set(names) - {m.name for m in MUTATIONS})
    if unknown:
        raise UsageError(f"no planted bug is called {', '.join(unknown)}; see: tf-d2 parity list-mutations")
    output = output.resolve()  # workers run in a folder of their own
    output.mkdir(parents=True, exist_ok=True)
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    if not names and auto_reference(how.torch_python).name != "detectron2":
        how.progress(f"left out, since they need detectron2 itself (--torch-python): {', '.join(RECORDED)}")
        chosen = [m for m in chosen if m.model not in RECORDED]
    outcomes: list[Outcome] = []
    for family in dict.fromkeys(m.model for m in chosen):
        bugs = [m for m in chosen if m.model == family]
        if family == "ops":
            outcomes += [_op_outcome(m, how) for m in bugs]
            continue
        outcomes += _family(family, bugs, output / family, how)
    return outcomes


def _op_outcome(bug: Mutation, how: How) -> Outcome:
    begin = time.monotonic()
    cases = Cases(bug.blame, dtypes=("float32",), mutate=bug.name)
    comparison = run_ops(None, cases, torch_python=how.torch_python, timeout=how.timeout)
    return _outcome(bug, comparison, begin, how.progress)


def _family(family: str, bugs: Sequence[Mutation], folder: Path, how: How) -> list[Outcome]:
    """The bugs of one model family against one reference run."""
    threads, timeout, progress = how.threads, how.timeout, how.progress
    folder.mkdir(parents=True, exist_ok=True)
    setup = _family_setup(family, folder, how)
    name = "detectron2" if family in RECORDED else "torch"
    torch = BackendChoice(name, "", how.torch_python)
    reference = run_backend(torch, setup, folder / "reference.h5", progress)
    again = replace(setup, threads=threads % 2 + 1)
    noise = run_backend(torch, again, folder / "noise.h5", progress)
    further: list[TraceLike] = []
    if setup.profile != "semantic":
        precise = replace(setup, profile="semantic", extra={"feed": str(reference.resolve())})
        further = [run_backend(torch, precise, folder / "truth.h5", progress)]
    begin = time.monotonic()
    control = Mutation(_CONTROLS[0], family, (), f"the reference with {again.threads} threads")
    outcomes = [_outcome(control, _judge(setup.profile, reference, noise, further), begin, progress)]
    table = {m.name: m for m in bugs}
    table[_CONTROLS[1]] = Mutation(_CONTROLS[1], family, (), "the TensorFlow model without a bug")

    def judge(event: dict[str, Any]) -> None:
        nonlocal begin
        if event["event"] != "mutant":
            return
        bug = table[event["name"]]
        if "error" in event:
            outcomes.append(Outcome(bug.name, family, bug.what, _expected(bug), 2, error=event["error"]))
        else:
            trace = Path(event["trace"])
            found = _judge(setup.profile, reference, trace, [noise, *further])
            outcomes.append(_outcome(bug, found, begin, progress))
            trace.unlink()
        begin = time.monotonic()

    job = {
        "mutations": [_CONTROLS[1], *(m.name for m in bugs)],
        "config_yaml": setup.config,
        "weights": setup.weights,
        "weights_sha256": setup.weights_sha256,
        "images": list(setup.images),
        "profile": setup.profile,
        "threads": threads,
        "feed": str(reference.resolve()),
    }
    mutants = Program("parity.selftest.tf_mutants", timeout=timeout)
    call_worker(mutants, job, folder / "mutants", on_event=judge)
    return outcomes


def _judge(profile: str, reference: Path, candidate: Path, further: Sequence[TraceLike]) -> Comparison:
    (found,) = compare(reference, candidate, profile=profile, noise=further)
    return found


def _expected(bug: Mutation) -> str:
    return " or ".join(bug.blame) or "the same"


def _outcome(bug: Mutation, comparison: Comparison, begin: float, progress: Progress) -> Outcome:
    first = comparison.first_bad
    outcome = Outcome(
        bug.name,
        bug.model,
        bug.what,
        _expected(bug),
        comparison.exit_code,
        first.name if first else "",
        str(first.verdict) if first and first.verdict is not Verdict.NONE else "",
        seconds=round(time.monotonic() - begin, 1),
    )
    state = "found where it is" if outcome.blamed else "found elsewhere" if outcome.caught else "NOT FOUND"
    progress(f"{bug.name}: {state if bug.blame else outcome.exit_code} {outcome.first_bad} {outcome.verdict}")
    return outcome


def _family_setup(family: str, folder: Path, how: How) -> Setup:
    """Configuration, weights and a picture of one family, ready to run on both sides."""
    python, threads, timeout, progress = how.torch_python, how.threads, how.timeout, how.progress
    if family in RECORDED:
        setup = recorded_setup(RECORDINGS / RECORDED[family], folder)
        return resolved(replace(setup, threads=threads, repeat=1, timeout=timeout), folder, progress)
    if family in OLDER:
        setup = older_setup(OLDER_RECORDINGS / f"{OLDER[family]}.h5", folder)
        return resolved(replace(setup, threads=threads, repeat=1, timeout=timeout), folder, progress)
    picture = folder / "picture.npy"
    np.save(picture, sample_picture())
    if family in ("mask", "semantic"):
        demo = embedded_demo()
        profile = "semantic" if family == "semantic" else "strict"
        setup = Setup(str(demo / "shapes.yaml"), str(demo / "shapes.pkl"), [str(picture)], profile)
    else:
        name, opts = FAMILIES[family]
        config = folder / "random.yaml"
        job = {"mode": "config", "config_yaml": name, "weights": "", "opts": opts, "images": ["none"]}
        tf_tools = Program("parity.backends.tf_tools", timeout=timeout)
        call_worker(tf_tools, job, config, progress=progress)
        weights = folder / "random.safetensors"
        random_job = {"config_yaml": str(config.resolve()), "seed": 7}
        torch_random = Program("parity.backends.torch_random", python, timeout)
        call_worker(torch_random, random_job, weights, progress=progress)
        setup = Setup(str(config), str(weights), [str(picture)])
    return resolved(replace(setup, threads=threads, repeat=1, timeout=timeout), folder, progress)


def recorded_setup(recording: Path, folder: Path) -> Setup:
    """The model and the picture of a recording of detectron2. Raises BackendError outside of a checkout."""
    write_safetensors(folder / "given.safetensors", _unpacked(recording, folder, "weights"))
    files = (folder / name for name in ("given.yaml", "given.safetensors", "picture.npy"))
    config, weights, picture = map(str, files)
    return Setup(config, weights, [picture])


def older_setup(recording: Path, folder: Path) -> Setup:
    """The same of a recording of Detectron or maskrcnn-benchmark, with its YAML and a checkpoint as it writes them."""
    with h5py.File(recording) as file:
        group = "blobs" if "blobs" in file else "weights"
    state = _unpacked(recording, folder, group)
    content = (
        {"blobs": state} if group == "blobs" else {"model": {f"module.{k}": v for k, v in state.items()}}
    )
    (folder / "given.pkl").write_bytes(pickle.dumps(content))
    config, weights, picture = (str(folder / name) for name in ("given.yaml", "given.pkl", "picture.npy"))
    return Setup(config, weights, [picture])


def _unpacked(recording: Path, folder: Path, group: str) -> dict[str, np.ndarray]:
    """The weights of a recording; its configuration and picture are written to the folder."""
    if not recording.is_file():
        raise BackendError(
            f"no {recording}: the bugs of this family are planted in a checkout of the repository"
        )
    state: dict[str, np.ndarray] = {}
    if recording.suffix == ".npz":  # of which only some arrays are kept
        with np.load(recording) as file:
            (folder / "given.yaml").write_text(str(file["config"]))
            np.save(folder / "picture.npy", file["input/image"])
            return {k.removeprefix(f"{group}/"): file[k] for k in file.files if k.startswith(f"{group}/")}
    with h5py.File(recording) as file:

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                state[name] = np.asarray(item[()])

        file[group].visititems(visit)  # pyright: ignore[reportAttributeAccessIssue]
        (folder / "given.yaml").write_text(str(file.attrs["config"]))
        np.save(folder / "picture.npy", np.asarray(file["input/image"]))
    return state


def kill_table(outcomes: Sequence[Outcome]) -> str:
    """The table in Markdown, with the rates first."""
    bugs = [o for o in outcomes if o.expected != "the same"]
    controls = [o for o in outcomes if o.expected == "the same"]
    caught, blamed = (sum(getattr(o, k) for o in bugs) for k in ("caught", "blamed"))
    passed = sum(o.caught for o in controls)
    lines = [
        "# Planted bugs",
        "",
        f"{caught} of {len(bugs)} planted bugs are found, {blamed} of them named at the stage where they "
        f"were planted; {passed} of {len(controls)} runs without a bug pass.",
        "",
        "Regenerate with `tf-d2 parity mutations --output DIR`; with `--only NAME` a folder's table is updated.",
        "",
        "| bug | model | what was planted | found | first bad stage named | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for o in [*controls, *bugs]:
        found = ("passes" if o.caught else "FAILS") if o in controls else "yes" if o.caught else "**no**"
        where = o.first_bad or o.error
        mark = "" if o.blamed or o in controls else " (expected " + o.expected + ")"
        lines.append(f"| {o.name} | {o.model} | {o.what} | {found} | {where}{mark} | {o.verdict} |")
    return "\n".join(lines) + "\n"


def write_results(outcomes: Sequence[Outcome], output: Path) -> Path:
    """Write ``mutations.md`` and ``mutations.json`` and return the former. Runs that the folder's table holds
    from before are kept where ``outcomes`` does not have them."""
    table = output / "mutations.json"
    merged = _updated(_read_results(table) if table.is_file() else [], outcomes)
    rows = [_row(o) for o in merged]
    table.write_text(json.dumps(rows, indent=1) + "\n")
    path = output / "mutations.md"
    path.write_text(kill_table(merged))
    return path


def _row(outcome: Outcome) -> dict[str, Any]:
    """One run in JSON, without its time, so that the file only changes where a finding does."""
    row = asdict(outcome) | {"caught": outcome.caught, "blamed": outcome.blamed}
    del row["seconds"]
    return row


def _read_results(table: Path) -> list[Outcome]:
    known = {f.name for f in fields(Outcome)}
    return [Outcome(**{k: v for k, v in row.items() if k in known}) for row in json.loads(table.read_text())]


def _updated(before: Sequence[Outcome], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """``outcomes`` and those of ``before`` they do not replace, in the order of the table of bugs; a bug that
    is no longer planted is left out."""
    order: dict[tuple[str, str], float] = {(m.model, m.name): k for k, m in enumerate(MUTATIONS)}
    first = {m.model: k for k, m in reversed(list(enumerate(MUTATIONS)))}
    order |= {(family, c): k - 0.5 for family, k in first.items() for c in _CONTROLS}
    merged = {(o.model, o.name): o for o in (*before, *outcomes)}
    return sorted((o for key, o in merged.items() if key in order), key=lambda o: order[o.model, o.name])
