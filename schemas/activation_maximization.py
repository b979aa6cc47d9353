"""Pictures that drive a unit as far as they can."""

import pyarrow as pa

from schemas.table import PICTURE, RESULT_KEY, UNIT, Table, column

ACTIVATION_MAXIMIZATION = Table(
    "activation_maximization",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            UNIT,
            column("variant", pa.string(), "the preset: plain, yosinski1 to yosinski4, fourier; `results.settings` has what differs from it"),
            column("seed", pa.int32(), "which of the unit's pictures, from 0"),
            column("target", pa.string(), "what was maximized: neuron (the map's center cell), channel (its mean), logit"),
            column("pre_relu", pa.bool_(), "whether it was measured before the ReLU that the layer ends in"),
            column("outcome", pa.string(), "drawn; dead: nothing moves the unit, or no image, real or made, gets it above 0; relu_blocked: ReLUs keep its gradient at 0"),
            column("objective", pa.float32(), "the target's value on `picture`, the best seen; null where nothing was drawn", nullable=True),
            column("best_step", pa.int32(), "the step after which it was reached, 0 for the start", nullable=True),
            column("last_objective", pa.float32(), "its value on `last_picture`", nullable=True),
            column("best_real", pa.float32(), "the same target's largest value on the unit's exemplars, wherever it is in the map; where it has none, as a unit that saturates, the layer's own largest; null if no real images were asked for", nullable=True),
            column("ratio", pa.float32(), "objective / best_real; null unless best_real is positive", nullable=True),
            column("argmax_step", pa.int32(), "the first step at which no other unit of the layer had a larger value at the target's place", nullable=True),
            column("redirected_steps", pa.int32(), "steps taken by the gradient through redirected ReLUs, since the true one was 0"),
            column("trace_every", pa.int32(), "steps between the values of `trace`"),
            column("trace", pa.list_(pa.float32()), "the target's value on the picture itself, from the start to the last step", nullable=True),
            column("diversity", pa.float32(), "mean cosine of the best picture's Gram matrix in the layer with those of the unit's other seeds; null for one seed", nullable=True),
            column("contrast", pa.float32(), "what the picture's distance from the mean color was multiplied with to be drawn: 1 if it is in the range of pixels", nullable=True),
            column("picture", PICTURE, "the best picture, JPEG", nullable=True),
            column("last_picture", PICTURE, "the picture after the last step, JPEG", nullable=True),
            column("filter", PICTURE, "in the first layer: the unit's filter as a picture, PNG of its own size", nullable=True),
            column("filter_cosine", pa.float32(), "cosine of the filter and the best picture where the filter lies", nullable=True),
            column("animation", PICTURE, "the picture on its way from the start to the last step, WebP; on request", nullable=True),
        ]
    ),
    sort=("unit", "variant", "seed"),
)  # fmt: skip
