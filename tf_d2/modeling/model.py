"""What all models share, and how a configuration becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_d2.config.schema import ModelConfig
from tf_d2.config.table import layer_of
from tf_d2.layers.base import walk
from tf_d2.layers.conv import Conv2d
from tf_d2.layers.norm import BatchNorm
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.keras_config import KerasConfig
from tf_d2.modeling.postprocess import to_image
from tf_d2.modeling.recording import Stages, Unrecorded
from tf_d2.modeling.results import Outputs
from tf_d2.ops.padding import normalize, padded_size
from tf_d2.ops.resize import resize_factor
from weights.errors import UsageError


def make_layer(kind: str, config: Any, *arguments: Any) -> Any:
    """The Keras layer of a part: ``arguments`` are those that `tf_d2.config.table` lists for its kind."""
    return layer_of(kind, config)(config, *arguments)


class D2Model(KerasConfig):
    """What all models share: the backbone, the way images get in, and the way weights get in and out.

    ``model(images, image_sizes)`` takes images at network resolution (already resized; see
    ``tf_d2.ops.resize``) and returns a flat dict of results in network coordinates. Subclasses implement
    :meth:`forward`, which also fills ``stages`` with named intermediate tensors (NHWC).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(name="model", autocast=False)
        self.config = config
        self.vertex_embeddings: dict[str, np.ndarray] = {}  # by mesh, for DensePose's CSE
        self.weights_are_constant = (
            False  # whether a Predictor has put them into its graphs (see tf_d2.ops.onednn)
        )
        channels = len(config.input.pixel_mean)
        self.backbone: Backbone = make_layer("backbone", config.backbone, channels, "backbone")
        self.backbone.build((None, None, None, channels))  # the shape that Keras reports of it
        self.build_heads()
        self.built = True

    def build_heads(self) -> None:
        raise NotImplementedError

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        raise NotImplementedError

    def to_image(self, raw: Outputs, network_size: tf.Tensor, size: tf.Tensor) -> Outputs:
        """What :meth:`forward` returned for one image, in pixels of that image; see `postprocess.to_image`."""
        return to_image(raw, network_size, size, self.config.conventions)

    # === From images to results ===

    def call(
        self,
        images: tf.Tensor,
        image_sizes: tf.Tensor | None = None,
        proposals: Proposals | None = None,
    ) -> Outputs:
        """Detect on a batch.

        Args:
            images: ``[B, H, W, 3]`` uint8 or float pixel values in ``INPUT.FORMAT`` order, each image in the top left
                corner of its canvas.
            image_sizes: int32 ``[B, 2]``, (height, width) of each image on its canvas; None = the whole canvas.
            proposals: only for models without a proposal generator (Fast R-CNN), in network coordinates.

        Returns:
            flat rows over all images: ``boxes`` ``[N, 4]`` float32 xyxy pixels of the network input, ``scores``
            ``[N]``, ``classes`` int64 ``[N]``, ``image_index`` int32 ``[N]``, ``counts`` int32 ``[B]``; ``pred_masks``
            probabilities ``[N, M, M]``, ``pred_keypoints`` ``[N, K, 3]``, ``sem_seg`` logits ``[B, H', W', C]`` of the
            padded input, where the model has them. Proposal networks return ``objectness_logits`` for scores.
        """
        if image_sizes is not None:
            # What a canvas has beyond the largest image is not padding that detectron2 would add.
            largest = tf.reduce_max(image_sizes, axis=0)
            x = self.prepare(images[:, : largest[0], : largest[1]], image_sizes)
            return self.forward(x, image_sizes, proposals, Unrecorded())
        shape = tf.shape(images)
        whole = tf.repeat(shape[None, 1:3], shape[0], axis=0)
        return self.forward(self.prepare(images, None), whole, proposals, Unrecorded())

    def prepare(self, images: tf.Tensor, image_sizes: tf.Tensor | None) -> tf.Tensor:
        """Normalise and pad: ``[B, H, W, 3]`` -> ``[B, H', W', 3]`` in the model's dtype.

        Padding happens after normalisation, with zeros (the mean colour), at the bottom and right only, up to a
        multiple of the backbone's divisibility. ``image_sizes``: int32 ``[B, 2]``, what of each canvas is image.
        """
        compute = tf.as_dtype(self.compute_dtype)
        accurate = tf.float64 if compute == tf.float64 else tf.float32
        # detectron2 normalises in float32 in its float64 models, too: mean and image are float32 there.
        x = tf.cast(normalize(images, self.config.input.pixel_mean, self.config.input.pixel_std), accurate)
        shape = tf.shape(x)
        if image_sizes is not None:
            inside_y = tf.range(shape[1])[None, :] < image_sizes[:, 0, None]  # [B, H]
            inside_x = tf.range(shape[2])[None, :] < image_sizes[:, 1, None]  # [B, W]
            x = tf.where((inside_y[:, :, None] & inside_x[:, None, :])[..., None], x, tf.zeros([], x.dtype))
        height, width = padded_size(shape[1], shape[2], self.size_divisibility, self.square_pad)
        x = x[:, :height, :width]
        shape = tf.shape(x)
        missing = tf.stack([0, height - shape[1], width - shape[2], 0])
        x = tf.pad(x, tf.stack([tf.zeros([4], tf.int32), missing], axis=1))
        x.set_shape([images.shape[0], None, None, len(self.config.input.pixel_mean)])
        return tf.cast(x, compute)

    @property
    def size_divisibility(self) -> int:
        """Both sides of the padded input are a multiple of this; 0 = no padding."""
        own = self.config.input.size_divisibility
        return self.backbone.size_divisibility if own < 0 else own

    @property
    def square_pad(self) -> int:
        return self.backbone.square_pad

    def run(
        self,
        x: tf.Tensor,
        network_sizes: tf.Tensor,
        sizes: tf.Tensor,
        proposals: Proposals | None,
        stages: Stages,
    ) -> Outputs:
        """:meth:`forward` of pictures whose original ``sizes`` int32 ``[B, 2]`` (height, width) are known.

        With Detectron's conventions, boxes and keypoints come in pixels of these.
        """
        if self.config.conventions.boxes_in_picture:
            forward: Any = self.forward
            return forward(x, network_sizes, proposals, stages, sizes)
        return self.forward(x, network_sizes, proposals, stages)

    def factors(self, sizes: tf.Tensor | None) -> tf.Tensor | None:
        """Pixels of the network input per pixel of pictures of ``sizes`` int32 ``[B, 2]``: float32 ``[B]``
        (Detectron)."""
        if sizes is None or not self.config.conventions.boxes_in_picture:
            return None
        config = self.config.input
        if config.min_size_test == 0:
            return tf.ones_like(sizes[:, 0], tf.float32)
        factor = resize_factor(sizes[:, 0], sizes[:, 1], config.min_size_test, config.max_size_test)
        return tf.cast(factor, tf.float32)

    def backbone_features(self, x: tf.Tensor, stages: Stages) -> dict[str, tf.Tensor]:
        """The backbone's outputs by name; every stage is recorded."""
        return self.backbone.forward(x, stages, "backbone")

    # === Weights ===

    def variable_specs(self) -> dict[str, tuple[int, ...]]:
        """Path and shape of every variable, in construction order."""
        return {v.path: tuple(v.shape) for v in self._all_variables()}

    def frozen_statistics(self) -> frozenset[str]:
        """Paths of the means and variances of the frozen norms, which old files do not hold."""
        norms = [layer for layer in walk(self) if isinstance(layer, BatchNorm) and layer.frozen]
        return frozenset(v.path for norm in norms for v in (norm.moving_mean, norm.moving_variance))

    def _all_variables(self) -> list[keras.Variable]:
        return list(self.variables)

    def assign(
        self, arrays: Mapping[str, np.ndarray], progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Set every variable; ``progress`` is called with the bytes of each.

        Raises KeyError or ValueError, before anything is changed, if paths or shapes differ or the loaded weights were
        released (:meth:`fold_norms`).
        """
        self._must_be_changeable()
        variables = {v.path: v for v in self._all_variables()}
        if set(variables) != set(arrays):
            raise KeyError(f"variables and arrays differ: {sorted(set(variables) ^ set(arrays))}")
        for path, variable in variables.items():
            if tuple(variable.shape) != arrays[path].shape:
                raise ValueError(f"{path}: shape {arrays[path].shape}, expected {tuple(variable.shape)}")
        for path, variable in variables.items():
            variable.assign(arrays[path])
            progress(arrays[path].nbytes)
        for conv in self._convolutions():
            conv.loaded()

    def fold_norms(self, release: bool = False) -> None:
        """Merge frozen batch norms into their convolutions, for inference.

        ``release``: drop the weights as they were loaded, so that a model needs no memory for two of each. Saving it,
        loading others, unfolding: all raise ValueError from then on.
        """
        for conv in self._convolutions():
            conv.fold(release)

    def unfold_norms(self) -> None:
        """Compute norms apart from convolutions again."""
        for conv in self._convolutions():
            conv.unfold()

    def _convolutions(self) -> list[Conv2d]:
        return [layer for layer in walk(self) if isinstance(layer, Conv2d)]

    def _must_be_changeable(self) -> None:
        self._must_be_loaded()
        if self.weights_are_constant:
            raise UsageError(
                "this model belongs to a Predictor whose convolutions keep the weights of their first call, and takes "
                "no others; make the Predictor with constant_weights=False, or use tf_d2.load_model"
            )

    def _must_be_loaded(self) -> None:
        for conv in self._convolutions():
            conv.must_be_loaded()

    # Keras would empty the file, or change the variables, before it asks this class anything.
    def save(self, *args: Any, **kwargs: Any) -> Any:
        self._must_be_loaded()
        self.get_config()
        return super().save(*args, **kwargs)

    def save_weights(self, *args: Any, **kwargs: Any) -> Any:
        self._must_be_loaded()
        return super().save_weights(*args, **kwargs)

    def get_weights(self) -> list[np.ndarray]:
        self._must_be_loaded()
        return super().get_weights()

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self._must_be_changeable()
        super().set_weights(weights)
        for conv in self._convolutions():
            conv.loaded()

    # One flat group of variables under their paths, which `weights` can write and read with h5py alone.
    def save_own_variables(self, store: Any) -> None:
        for variable in self._all_variables():
            store[variable.path] = variable.value.numpy()

    def load_own_variables(self, store: Any) -> None:
        self.assign({v.path: np.asarray(store[v.path]) for v in self._all_variables()})


DTYPES = ("float32", "float64", "bfloat16")


def build_model(config: ModelConfig, dtype: str = "float32") -> D2Model:
    """A model with all-zero variables (inside :func:`tf_d2.layers.base.unfilled`: with any values).

    Args:
        dtype: "float32", "float64" or "bfloat16" for variables and computation. Boxes, scores and everything discrete
            are float32 in any case, as in detectron2.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    policy = keras.mixed_precision.dtype_policy()  # Keras 3.0.0 has neither in keras.config
    keras.mixed_precision.set_dtype_policy(dtype)
    try:
        return layer_of("meta_architecture", config.model)(config)
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
