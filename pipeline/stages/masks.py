"""How masks are made: settings shared by the stages that make them."""

from typing import Literal

from pipeline.errors import SettingsError
from pipeline.stage import Job, Layer, Stage
from workers.methods.dissection import Alignment, MaskOrder


class MaskSettings(Stage):
    """Settings of a stage that binarizes activation maps."""

    mask_order: MaskOrder = "upsample_first"  # Bau et al. 2017, section 2.2; threshold_first: the survey's Eq. 18
    upsampling: Literal["resize", "receptive_field"] = "resize"  # receptive_field: the Caffe original

    def check(self, layer: Layer, job: Job) -> None:
        self.alignment(layer, (1, 1))

    def alignment(self, layer: Layer, input_size: tuple[int, int]) -> tuple[Alignment, Alignment] | None:
        """Where the layer's grid lies under the input; None for `resize`.

        Raises:
            SettingsError: the layer has no receptive field to align by.
        """
        if self.upsampling == "resize" or layer.cells == 1:
            return None
        field = layer.field
        if field is None or field.stride_y is None or field.stride_x is None:
            raise SettingsError(
                f"layer {layer.name} has no receptive field smaller than the input to align masks by: "
                "use upsampling=resize for it"
            )
        return (
            Alignment(input_size[0], field.offset_y, field.stride_y),
            Alignment(input_size[1], field.offset_x, field.stride_x),
        )
