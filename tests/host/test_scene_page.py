"""What the server draws of a Demo Scene for the page, beside what a run gives."""

from io import BytesIO

import numpy as np
import pytest
from palimpsest.nodes.load import DemoScene
from palimpsest.nodes.scene_page import picture_of
from palimpsest.pipelines.errors import PalimpsestError
from PIL import Image

PARTS = {
    "color": "red",
    "shape": "star",
    "texture": "plain",
    "background": "grass",
    "edit_color": "blue",
    "edit_shape": "keep",
    "edit_texture": "keep",
    "edit_background": "snow",
}


@pytest.mark.parametrize(("output", "place"), [("image", 0), ("mask", 1), ("true_edit", 4)])
def test_the_page_is_shown_what_a_run_gives(output, place):
    shown = np.asarray(Image.open(BytesIO(picture_of({**PARTS, "seed": "3", "output": output}))))
    given = DemoScene.run(seed=3, **PARTS).result[place][0].numpy()
    wanted = given if given.ndim == 3 else given[..., None].repeat(3, -1)
    assert shown.shape == (128, 128, 3)
    assert np.abs(shown / 255 - wanted).max() < 1 / 254


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"color": "infrared"}, "The color is 'infrared', it must be red or "),
        ({"color": "keep"}, "The color is 'keep', it must be red or "),
        ({"output": "caption"}, "The output is 'caption', it must be image or mask or true_edit"),
        ({"seed": "-1"}, "The seed is '-1', it must be 0 to 2147483647"),
        ({"seed": "2147483648"}, "The seed is '2147483648', it must be 0 to 2147483647"),
        ({"seed": "9" * 5000}, "The seed is '9999"),
        ({"seed": "\u0663"}, "The seed is '\u0663', it must be 0 to 2147483647"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(wrong, said):
    with pytest.raises(PalimpsestError) as error:
        picture_of({**PARTS, "seed": "3", "output": "image", **wrong})
    assert str(error.value).startswith(said)
    assert len(str(error.value)) < 250


def test_what_is_missing_is_said():
    with pytest.raises(PalimpsestError, match="The color is '', it must be red or"):
        picture_of({})
