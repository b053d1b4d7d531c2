"""A damaged TIFF is an ImageError, and nothing else: libtiff would write to stderr by itself."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from cloob_cli.data.preprocess import open_image
from cloob_cli.errors import ImageError


@pytest.mark.skipif(not features.check("libtiff"), reason="Pillow without libtiff")
@pytest.mark.skipif(sys.platform == "win32", reason="libtiff is linked into Pillow there")
def test_a_damaged_tiff_is_not_loud(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "TIFF", compression="tiff_lzw")
    data = bytearray(stream.getvalue())
    data[100:140] = bytes(range(200, 240))
    with pytest.raises(ImageError):
        open_image(bytes(data))
    assert capfd.readouterr().err == ""
