"""The user's door: an image in, detectron2's result out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_d2 import kernels
from tf_d2.config import ModelConfig
from tf_d2.config.parts.conventions import with_conventions
from tf_d2.densepose import with_densepose
from tf_d2.instances import Instances
from tf_d2.loading import DType, load_model, model_yaml
from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.network_input import fits, network_size, pooling_windows, to_network
from tf_d2.modeling.postprocess import PASTED, masks_of_segments, paste, paste_on_gpu, rescale_boxes
from tf_d2.modeling.recording import Unrecorded
from tf_d2.ops import device, onednn, winograd
from tf_d2.ops.image_io import ImageError
from tf_d2.ops.resize import MAX_CHANNELS_UINT8
from tf_d2.stages import StageArrays, combine_panoptic, run_op, stage_array
from weights.errors import UsageError


class Predictor:
    """Runs a model on one image at a time, like detectron2's ``DefaultPredictor``.

    ``predictor(image)`` with a BGR uint8 image returns a dict with, depending on the model, ``"instances"``
    (:class:`Instances`), ``"sem_seg"`` (float32 ``(C, H, W)`` logits, read-only), ``"panoptic_seg"`` ((int32
    ``(H, W)``, list of segment dicts); of Panoptic-DeepLab (int64 class * divisor + instance or -1, None)) and
    ``"proposals"``. Everything is in pixels of the image given. One trace
    serves every image size.
    """

    def __init__(
        self,
        config: str | Path,
        weights: str | Path | None = None,
        *,
        dtype: DType = "float32",
        opts: Sequence[Any] = (),
        ema: bool = False,
        allow_nonfinite: bool = False,
        ignore_keys: Sequence[str] = (),
        ignore_tensors: Sequence[str] = (),
        prefix: str | None = None,
        conventions: str | None = None,
        fold_norms: bool | None = None,
        constant_weights: bool | None = None,
    ) -> None:
        """Arguments of :func:`load_model`, and what makes a model faster that only predicts, by rounding only:

        Args:
            fold_norms: merge frozen norms into convolutions (None = yes, but not in float64, where the point is to
                compute as written). The merged kernels take the place of the loaded ones in ``model``, which cannot be
                saved then.
            constant_weights: convolutions keep the weights of their first call, in the layout that is fastest on an
                x86-64 CPU (see :mod:`tf_d2.ops.onednn`; None = where norms are folded). Change variables of ``model``
                after that, and predictions go on with the old ones.
        """
        opts = with_conventions(opts, conventions)
        self.config_yaml = model_yaml(config, opts, ignore_keys)
        self.model = load_model(
            config,
            weights,
            dtype=dtype,
            opts=opts,
            ema=ema,
            allow_nonfinite=allow_nonfinite,
            ignore_keys=ignore_keys,
            ignore_tensors=ignore_tensors,
            prefix=prefix,
        )
        self.config: ModelConfig = self.model.config
        fold_norms = dtype != "float64" if fold_norms is None else fold_norms
        if fold_norms:
            self.model.fold_norms(release=True)
        self._constant = fold_norms if constant_weights is None else constant_weights
        self.model.weights_are_constant = self._constant
        channels = len(self.config.input.pixel_mean)
        spec = {
            t: [
                tf.TensorSpec([None, None, channels], t),
                tf.TensorSpec([2], tf.int32),
                tf.TensorSpec([2], tf.int32),
                tf.TensorSpec([None, 4], tf.float32),
                tf.TensorSpec([None], tf.float32),
            ]
            for t in (tf.uint8, tf.float16, tf.float32, tf.float64)
        }
        self._on_gpu = bool(tf.config.get_visible_devices("GPU"))
        kernels.advise(weights_kept=self._constant and onednn.available(tf.as_dtype(dtype)))
        self._predict = {t: _graph(self._run, s) for t, s in spec.items()}
        self._trace = {t: _graph(self._run_traced, s) for t, s in spec.items()}

    # === Calls ===

    def __call__(
        self,
        image: np.ndarray,
        *,
        proposals: np.ndarray | None = None,
        proposal_logits: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Detect on one image.

        Args:
            image: ``(H, W, 3)`` uint8 in BGR order, as ``cv2.imread`` or :func:`tf_d2.read_image` give it. Other
                dtypes (float16, float32, float64) are resized in their own dtype without antialiasing, as detectron2
                does with them. Of uint8 pictures with 2 or 4 channels (as many as MODEL.PIXEL_MEAN has), Pillow's
                resize takes the last for an opacity, and so does this.
            proposals: float ``(N, 4)`` xyxy boxes in pixels of the *network input* (see
                :meth:`network_size`, :func:`transform_proposals`), for Fast R-CNN models only.
            proposal_logits: float ``(N,)``, kept with the proposals; zeros if left out.

        Raises:
            ImageError: not an image the model can use.
            ValueError: proposals missing or not wanted.
        """
        arguments, size = self._arguments(image, proposals, proposal_logits)
        outputs = self._predict[arguments[0].dtype](*arguments)
        # Semantic logits take hundreds of megabytes: not copied, but seen in the tensor, which nobody may change.
        seen = ("sem_seg", PASTED)
        fields = {k: np.asarray(v) if k in seen else v.numpy() for k, v in outputs.items()}
        return self._result(fields, size)

    def trace(
        self,
        image: np.ndarray,
        *,
        proposals: np.ndarray | None = None,
        proposal_logits: np.ndarray | None = None,
        rescaled: bool = True,
    ) -> StageArrays:
        """Everything the model computes on the way: stage name -> array, names and NCHW layout of detectron2.

        Names are module paths with the index of the output where a module returns several
        ("backbone/p2", "proposal_generator.rpn_head/0/3"), "input/resized" (the uint8 network image) and "input"
        (normalised and padded). A prefix "steps/" may be given on look-up.

        Boxes are in pixels of the network input, but for one case: detectron2 rescales the proposals of an RPN-only
        model in place, so that its trace holds them in pixels of the image. ``rescaled=False`` leaves them as the
        proposal generator returned them.
        """
        arguments, size = self._arguments(image, proposals, proposal_logits)
        stages, outputs = self._trace[arguments[0].dtype](*arguments)
        named = {name: stage_array(name, value.numpy()) for name, value in stages.items()}
        if self.config.needs_proposals:
            named["input_proposals"] = arguments[3].numpy()
        named["input/resized"] = outputs["input/resized"].numpy()
        boxes = "proposal_generator/0/0/proposal_boxes"
        if rescaled and self.config.meta_architecture == "ProposalNetwork" and boxes in named:
            one_image = tf.zeros([len(named[boxes])], tf.int32)
            network = tf.constant([self.network_size(*size)])
            named[boxes] = rescale_boxes(
                tf.constant(named[boxes]), one_image, network, tf.constant([size])
            ).numpy()
        return StageArrays(named)

    def run_op(self, op: str, args: Sequence[Any], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One computation of the model on given inputs (see :mod:`tf_d2.stages`): the teacher-forced half of parity."""
        return run_op(self.model, op, args, inputs)

    @property
    def vertex_embeddings(self) -> dict[str, np.ndarray]:
        """Of a CSE model (DensePose): name of a mesh -> float32 ``(vertices, D)``, as far as the checkpoint has them.

        With :attr:`class_to_mesh`, what :func:`tf_d2.densepose.closest_vertices` needs.
        """
        return dict(self.model.vertex_embeddings)

    @property
    def class_to_mesh(self) -> dict[int, str]:
        """Of a CSE model: class -> name of its mesh (DATASETS.CLASS_TO_MESH_NAME_MAPPING)."""
        head = getattr(self.config.roi_heads, "densepose", None)
        return dict(head.class_to_mesh) if head is not None else {}

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image of this size has as network input.

        Raises ImageError where that is empty: detectron2 cannot resize such an image either.
        """
        config = self.config.input
        size = network_size(height, width, config)
        if min(size) < 1:
            raise ImageError(
                f"a {height}x{width} image would become {size[0]}x{size[1]} at INPUT.MIN_SIZE_TEST "
                f"{config.min_size_test}, MAX_SIZE_TEST {config.max_size_test}: too elongated, crop or pad it first"
            )
        return size

    # === Inside ===

    def _arguments(
        self, image: np.ndarray, proposals: np.ndarray | None, logits: np.ndarray | None
    ) -> tuple[list[tf.Tensor], tuple[int, int]]:
        image = _checked_image(image, len(self.config.input.pixel_mean))
        self._check_resizable(image)
        needs = self.config.needs_proposals
        if needs and proposals is None:
            raise UsageError(
                "this model has no proposal generator (MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals): "
                "pass proposals=, (N, 4) boxes in pixels of the network input"
            )
        if proposals is not None and not needs:
            raise UsageError("this model makes its own proposals; proposals= is for Fast R-CNN models")
        boxes = np.zeros((0, 4), np.float32) if proposals is None else np.asarray(proposals, np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UsageError(f"proposals must be (N, 4) xyxy boxes, got shape {boxes.shape}")
        scores = np.zeros(len(boxes), np.float32) if logits is None else np.asarray(logits, np.float32)
        if scores.shape != (len(boxes),):
            raise UsageError(f"proposal_logits must be ({len(boxes)},), got shape {scores.shape}")
        size = image.shape[0], image.shape[1]
        network = self.network_size(*size)
        self._check_poolable(size, network)
        return [
            tf.constant(v)
            for v in (image, np.array(network, np.int32), np.array(size, np.int32), boxes, scores)
        ], size

    def _check_resizable(self, image: np.ndarray) -> None:
        channels = image.shape[2]
        if image.dtype == np.uint8 and channels > MAX_CHANNELS_UINT8 and self.config.input.min_size_test:
            raise ImageError(
                f"a uint8 image of {channels} channels cannot be resized: Pillow, which detectron2 resizes with, "
                f"has no such picture of more than {MAX_CHANNELS_UINT8}; pass it as float32 (resized without "
                "antialiasing), or set INPUT.MIN_SIZE_TEST 0 and pass it at network size"
            )

    def _check_poolable(self, size: tuple[int, int], network: tuple[int, int]) -> None:
        if not fits(self.config, *network):
            windows = dict.fromkeys(f"{h * s} x {w * s}" for s, (h, w) in pooling_windows(self.config))
            raise ImageError(
                f"a {size[0]}x{size[1]} image becomes {network[0]}x{network[1]}, which is no multiple of the window "
                f"that this model's pooling was trained with, {' and '.join(windows)} pixels (INPUT.CROP.SIZE); "
                "detectron2 refuses it, too: pass a picture of other proportions, or set INPUT.CROP.ENABLED False to "
                "average over all of it, which is another result"
            )

    def _forward(
        self,
        image: tf.Tensor,
        network_size: tf.Tensor,
        proposal_boxes: tf.Tensor,
        proposal_logits: tf.Tensor,
        stages: dict[str, tf.Tensor],
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        if self.config.input.format == "RGB":
            image = image[:, :, ::-1]
        shape = tf.shape(image)
        resized = to_network(image, network_size, self.config.input)
        if resized.dtype != tf.uint8:  # detectron2 makes any picture float32 here
            resized = tf.cast(resized, tf.float32)
        count = tf.shape(proposal_boxes)[0]
        given = Proposals(proposal_boxes, proposal_logits, tf.zeros([count], tf.int32), count[None])
        stages["input"] = x = self.model.prepare(resized[None], None)
        proposals = given if self.config.needs_proposals else None
        answers = winograd.for_answers(not self._on_gpu)
        with onednn.keep_weights(self._constant), answers, device.runs_here():
            return self.model.run(x, network_size[None], shape[None, :2], proposals, stages), resized

    def _run(
        self,
        image: tf.Tensor,
        network_size: tf.Tensor,
        size: tf.Tensor,
        proposal_boxes: tf.Tensor,
        proposal_logits: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        raw, _ = self._forward(image, network_size, proposal_boxes, proposal_logits, Unrecorded())
        fields = self.model.to_image(raw, network_size, size)
        return paste_on_gpu(fields, size, self.config.conventions) if self._on_gpu else fields

    def _run_traced(
        self,
        image: tf.Tensor,
        network_size: tf.Tensor,
        size: tf.Tensor,
        proposal_boxes: tf.Tensor,
        proposal_logits: tf.Tensor,
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        del size
        stages: dict[str, tf.Tensor] = {}
        _, resized = self._forward(image, network_size, proposal_boxes, proposal_logits, stages)
        return stages, {"input/resized": resized}

    def _result(self, fields: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        sem_seg, labels = fields.pop("sem_seg", None), fields.pop("sem_seg_labels", None)
        if (segments := fields.pop("panoptic_seg", None)) is not None:
            result["panoptic_seg"] = segments, None
            fields = masks_of_segments(fields, segments)
        if "proposal_boxes" in fields:
            result["proposals"] = Instances(size, **fields)
        elif fields:
            pasted = fields
            if segments is None:
                pasted = paste(fields, size, self.config.conventions, self.config.mask_threshold)
            result["instances"] = Instances(size, **with_densepose(pasted))
        if sem_seg is not None:
            # A view: copying hundreds of megabytes into another order takes longer than the semantic head.
            result["sem_seg"] = sem_seg.transpose(2, 0, 1)
        if self.config.panoptic is not None and labels is not None and "instances" in result:
            result["panoptic_seg"] = combine_panoptic(self.config.panoptic, result["instances"], labels)
        return result


def _graph(function: Callable[..., Any], signature: Sequence[tf.TensorSpec]) -> Callable[..., Any]:
    """A method as a graph. TensorFlow warns of repeated tracing by a method's code, whichever object it belongs to: the
    first pictures of a process's fifth Predictor would be taken for it. A partial is an object of its own."""
    # The code is graph code already; AutoGraph would only spend seconds on rewriting it.
    return tf.function(partial(function), input_signature=signature, autograph=False)


def _checked_image(image: object, channels: int) -> np.ndarray:
    """The picture as an array that needs no guess about what it means, or an error that says what was given."""
    wanted = f"a BGR image as a uint8 array of shape (height, width, {channels})"
    if image is None:
        raise ImageError(
            f"the image is None, which cv2.imread gives for a file it cannot read; expected {wanted}"
        )
    if isinstance(image, str | bytes | PathLike):
        given = "the bytes of a file" if isinstance(image, bytes) else f"a path ({image})"
        raise ImageError(f"got {given} where an image belongs; read it first: tf_d2.read_image(...)")
    if type(image).__module__.partition(".")[0] == "PIL":
        raise ImageError(
            "got a Pillow picture, whose channels are in RGB order while BGR is wanted; read the file with "
            "tf_d2.read_image, or pass np.asarray(picture.convert('RGB'))[:, :, ::-1]"
        )
    if isinstance(image, Mapping):
        raise ImageError(
            f"got a {type(image).__name__} with keys {sorted(map(str, image))}; expected {wanted}"
        )
    if not isinstance(image, np.ndarray):
        image = _array(image, wanted)
    shape, dtype = image.shape, image.dtype
    if dtype.kind == "O":
        raise ImageError(f"got an array of Python objects; expected {wanted}")
    if image.ndim == 4:
        raise ImageError(
            f"got a batch (shape {shape}); pass one image at a time, of shape (height, width, {channels}), or use "
            "a serving export for batches"
        )
    if image.ndim == 2:
        raise ImageError(
            f"got a grey image (shape {shape}); expected {wanted}: repeat it, np.dstack([image] * {channels})"
        )
    if image.ndim != 3:
        raise ImageError(f"got an array of shape {shape}; expected {wanted}")
    if 0 in shape:
        raise ImageError(f"the image is empty: shape {shape}")
    if shape[2] != channels:
        raise ImageError(_wrong_channels(shape, channels, wanted))
    if dtype == np.uint8:
        return image
    if dtype not in (np.float16, np.float32, np.float64):
        raise ImageError(
            f"expected a uint8 (or float16, float32, float64) image, got {dtype}; scale it to 0..255 and cast it first"
        )
    if not np.isfinite(image).all():
        raise ImageError("the image has NaN or infinite values")
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def _array(image: object, wanted: str) -> np.ndarray:
    """Tensors and other things that hold one array."""
    kind = type(image).__name__
    if isinstance(image, list | tuple):
        raise ImageError(f"got a {kind} of {len(image)}; pass one image at a time; expected {wanted}")
    if not (
        hasattr(image, "__array__") or hasattr(image, "__array_interface__") or hasattr(image, "__dlpack__")
    ):
        raise ImageError(f"got a {kind}; expected {wanted}")
    try:
        return np.asarray(image)
    except Exception as error:
        raise ImageError(f"got a {kind} that is not an array ({error}); expected {wanted}") from error


def _wrong_channels(shape: tuple[int, ...], channels: int, wanted: str) -> str:
    if shape[0] == channels:
        return f"got shape {shape}, channels first; expected {wanted}: image.transpose(1, 2, 0)"
    if channels == 3 and shape[2] == 4:
        return f"got an image with 4 channels (shape {shape}); expected {wanted}: drop the opacity, image[:, :, :3]"
    return f"got an image with {shape[2]} channels (shape {shape}); expected {wanted}; tf_d2.read_image gives that"
